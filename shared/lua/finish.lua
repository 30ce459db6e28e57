#!lua flags=allow-oom
--+ held transitions
-- End jobs that this worker holds: for each 1, or 0 if it has ended already or another worker holds it.
local worker = ARGV[1]

local function finish(id, state, err, result, done, failed, timings)
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
end

local out = {}
for i = 2, #ARGV, 7 do out[#out + 1] = finish(unpack(ARGV, i, i + 6)) end
return out
