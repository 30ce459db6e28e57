#!lua flags=allow-oom
-- Push a message to a reply list at each change of a job from now on. 0 if there is no such job.
local id, list = ARGV[1], ARGV[2]
if redis.call('EXISTS', job(id)) == 0 then return 0 end
redis.call('SADD', 'cq:watch:' .. id, list)
redis.call('HSET', job(id), 'watched', '1')
local left = redis.call('PTTL', job(id))
if left > 0 then redis.call('PEXPIRE', 'cq:watch:' .. id, left) end
return 1
