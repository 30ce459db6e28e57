#!lua flags=allow-oom
-- {a job's record, its place in the queue or false, the time}; false if there is no such job.
local record = redis.call('HGETALL', job(ARGV[1]))
if #record == 0 then return false end
local f = redis.call('HMGET', job(ARGV[1]), 'model', 'lane')
return {record, redis.call('ZRANK', 'cq:queued:' .. f[1] .. ':' .. f[2], ARGV[1]), int(now())}
