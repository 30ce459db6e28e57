#!lua flags=allow-oom
--+ held transitions
-- Take jobs for a worker: for each {'yours', inputs or false, values of the record's fields CLAIMED}, or {reason} if the worker does not get it.
-- A job that another worker holds is refused, even if that worker is dead: then the reconciler puts the job back in the
-- queue. Inputs of up to `inline` bytes are part of the reply.
-- A job that has lost workers is a suspect: `suspicion` 0 takes none, 1 those with more than one attempt left, 2 all.
local worker, max_attempts, inline, suspicion = ARGV[1], tonumber(ARGV[2]), tonumber(ARGV[3]), tonumber(ARGV[4])

local function claim(id)
  local k = job(id)
  local f = redis.call('HMGET', k, 'state', 'deadline', 'attempts', 'size', 'model', 'lane')
  if not f[1] then return {'gone'} end
  if not may(f[1], 'running') then return {f[1]} end
  local t = now()
  local deadline = tonumber(f[2] or '0')
  if deadline > 0 and deadline <= t then
    close(id, 'expired', ERRORS.expired, '', t)
    return {'expired'}
  end
  local attempts = tonumber(f[3]) or 0
  if attempts >= max_attempts then
    close(id, 'failed', ERRORS.worker_lost, '', t)
    return {'failed'}
  end
  if attempts > 0 and suspicion < (attempts + 1 == max_attempts and 2 or 1) then return {'suspect'} end
  redis.call('HSET', k, 'state', 'running', 'worker', worker, 'started', int(t), 'attempts', int(attempts + 1))
  redis.call('ZADD', 'cq:open:' .. (f[5] or ''), 'XX', RUNNING, id)
  redis.call('ZREM', 'cq:queued:' .. (f[5] or '') .. ':' .. (f[6] or ''), id)
  tell_watchers(id)
  local inputs = false
  if (tonumber(f[4]) or 0) <= inline then inputs = redis.call('GET', 'cq:in:' .. id) end
  return {'yours', inputs, redis.call('HMGET', k, unpack(CLAIMED))}
end

local out = {}
for i = 5, #ARGV do out[#out + 1] = claim(ARGV[i]) end
return out
