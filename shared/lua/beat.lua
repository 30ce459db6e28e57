#!lua flags=allow-oom
-- A worker's heartbeat: renews its lease, and writes the progress of each job that it names. Returns the ids of jobs
-- that it does not hold any more.
local worker, info, lease = ARGV[1], ARGV[2], ARGV[3]
redis.call('SET', 'cq:worker:' .. worker, info, 'PX', lease)
redis.call('SADD', 'cq:workers', worker)
local lost, t = {}, int(now())
for i = 4, #ARGV, 3 do
  local id, done, failed = ARGV[i], ARGV[i + 1], ARGV[i + 2]
  local f = redis.call('HMGET', job(id), 'state', 'worker', 'done', 'failed')
  if f[1] ~= 'running' or f[2] ~= worker then
    lost[#lost + 1] = id
  else
    redis.call('HSET', job(id), 'held', t, 'done', done, 'failed', failed)
    if (f[3] or '0') ~= done or (f[4] or '0') ~= failed then tell_watchers(id) end
  end
end
return lost
