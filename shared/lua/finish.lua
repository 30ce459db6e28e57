#!lua flags=allow-oom
--+ held transitions
-- End a job that this worker holds: 1, or 0 if it has ended already or another worker holds it.
local id, worker, state, err, result = ARGV[1], ARGV[2], ARGV[3], ARGV[4], ARGV[5]
local done, failed, timings = ARGV[6], ARGV[7], ARGV[8]
local f = redis.call('HMGET', job(id), 'worker', 'kind', 'lane', 'model')
if f[1] ~= worker then return 0 end
local ended = close(id, state, err, result, now())
if ended == 1 then
  redis.call('HSET', job(id), 'done', done, 'failed', failed, 'timings', timings)
  if f[2] == 'embed_shard' and state == 'succeeded' then
    count('rows_done', f[3], f[4], done)
    count('rows_failed', f[3], f[4], failed)
  end
end
return ended
