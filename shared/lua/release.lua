#!lua flags=allow-oom
--+ held transitions
-- Put a job that this worker holds back in the queue. The attempt does not count.
local id, worker = ARGV[1], ARGV[2]
local f = redis.call('HMGET', job(id), 'state', 'worker', 'model', 'lane', 'created')
if f[1] ~= 'running' or f[2] ~= worker then return 0 end
redis.call('HINCRBY', job(id), 'attempts', -1)
requeue(id, f[3], f[4], f[5])
return 1
