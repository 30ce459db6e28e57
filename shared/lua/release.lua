-- Give back a job that this worker holds and will not finish; it does not count as an attempt.
local id, worker = ARGV[1], ARGV[2]
local f = redis.call('HMGET', job(id), 'state', 'worker', 'model', 'lane', 'created')
if f[1] ~= 'running' or f[2] ~= worker then return 0 end
redis.call('HINCRBY', job(id), 'attempts', -1)
requeue(id, f[3], f[4], f[5])
return 1
