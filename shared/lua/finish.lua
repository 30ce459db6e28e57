#!lua flags=allow-oom
--+ held transitions
-- End a job that this worker holds: 1, or 0 if it has ended already or another worker holds it.
local id, worker, state, err, result = ARGV[1], ARGV[2], ARGV[3], ARGV[4], ARGV[5]
local done, failed, timings = ARGV[6], ARGV[7], ARGV[8]
if redis.call('HGET', job(id), 'worker') ~= worker then return 0 end
local ended = close(id, state, err, result, now())
if ended == 1 then redis.call('HSET', job(id), 'done', done, 'failed', failed, 'timings', timings) end
return ended
