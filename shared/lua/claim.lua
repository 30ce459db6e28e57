#!lua flags=allow-oom
--+ held transitions
-- Take jobs for a worker: for each {'yours', inputs or false, values of the record's fields CLAIMED}, or {reason} if the
-- worker does not get it.
-- A job that another worker holds is refused, even if that worker is dead: then the reconciler puts the job back in the
-- queue. Inputs of up to `inline` bytes are part of the reply.
-- A job that has lost workers is a suspect: `suspicion` 0 takes none, 1 those with more than one attempt left, 2 all.
local worker, max_attempts, inline, suspicion = ARGV[1], tonumber(ARGV[2]), tonumber(ARGV[3]), tonumber(ARGV[4])

local t = now()
local at = {} -- where a field stands among CLAIMED
for i, name in ipairs(CLAIMED) do at[name] = i end

-- By set, what is changed in it at the end, at once: the jobs that run from now on, and that wait no longer.
local running, waiting = {}, {}

local function claim(id)
  local k = job(id)
  local f = redis.call('HMGET', k, unpack(CLAIMED))
  local state = f[at.state]
  if not state then return {'gone'} end
  if not may(state, 'running') then return {state} end
  local deadline = tonumber(f[at.deadline] or '0')
  if deadline > 0 and deadline <= t then
    close(id, 'expired', ERRORS.expired, '', t)
    return {'expired'}
  end
  local attempts = tonumber(f[at.attempts]) or 0
  if attempts >= max_attempts then
    close(id, 'failed', ERRORS.worker_lost, '', t)
    return {'failed'}
  end
  if attempts > 0 and suspicion < (attempts + 1 == max_attempts and 2 or 1) then return {'suspect'} end
  f[at.state], f[at.worker], f[at.started], f[at.attempts] = 'running', worker, int(t), int(attempts + 1)
  redis.call('HSET', k, 'state', 'running', 'worker', worker, 'started', int(t), 'attempts', int(attempts + 1))
  onto(running, 'cq:open:' .. (f[at.model] or ''), RUNNING, id)
  onto(waiting, 'cq:queued:' .. (f[at.model] or '') .. ':' .. (f[at.lane] or ''), id)
  if f[at.watched] then tell_watchers(id) end
  local inputs = (tonumber(f[at.size]) or 0) <= inline and redis.call('GET', 'cq:in:' .. id)
  return {'yours', inputs, f}
end

local out = {}
for i = 5, #ARGV do out[#out + 1] = claim(ARGV[i]) end
for set, scored in pairs(running) do redis.call('ZADD', set, 'XX', unpack(scored)) end
for set, ids in pairs(waiting) do redis.call('ZREM', set, unpack(ids)) end
return out
