#!lua flags=allow-oom
--+ held transitions
-- Reconcile the runs that workers lead: forget those that have ended, expire those whose deadline has passed, and let
-- those whose worker is dead, or has not named them for `neglected` ms, wait for another. Returns how many wait now.
local max_attempts, neglected = tonumber(ARGV[1]), tonumber(ARGV[2])
local t, waiting = now(), 0
for _, id in ipairs(redis.call('ZRANGE', 'cq:runs', 0, -1)) do
  local f = redis.call('HMGET', job(id), 'state', 'worker', 'deadline', 'attempts', 'started', 'held', 'model', 'lane',
                       'created')
  local state, deadline = f[1], tonumber(f[3] or '0')
  if not may(state, 'cancelled') then
    redis.call('ZREM', 'cq:runs', id)
  elseif deadline > 0 and deadline <= t then
    close(id, 'expired', ERRORS.expired, '', t)
  elseif state == 'running' then
    local named = math.max(tonumber(f[5] or '0'), tonumber(f[6] or '0'))
    if redis.call('EXISTS', 'cq:worker:' .. f[2]) == 0 or t - named > neglected then
      if (tonumber(f[4]) or 0) >= max_attempts then
        close(id, 'failed', ERRORS.leader_lost_too_often, '', t)
      else
        requeue(id, f[7], f[8], f[9])
        waiting = waiting + 1
      end
    end
  else
    waiting = waiting + 1
  end
end
return waiting
