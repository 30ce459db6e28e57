#!lua flags=allow-oom
-- {a job's record, its place in the queue or false, the time}; false if there is no such job.
local record = redis.call('HGETALL', job(ARGV[1]))
if #record == 0 then return false end
local f = redis.call('HMGET', job(ARGV[1]), 'model', 'lane', 'run', 'state')
local position = redis.call('ZRANK', 'cq:queued:' .. f[1] .. ':' .. f[2], ARGV[1])
if f[3] and f[4] == 'queued' then -- a run: those before it that wait as well
  position = 0
  for _, id in ipairs(redis.call('ZRANGE', 'cq:runs', 0, -1)) do
    if id == ARGV[1] then break end
    if redis.call('HGET', job(id), 'state') == 'queued' then position = position + 1 end
  end
end
return {record, position, int(now())}
