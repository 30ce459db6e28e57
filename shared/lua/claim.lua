-- A delivery: take the job, or say why not: {'yours', record, inputs} or {reason}.
-- A job that another delivery holds is left alone, whether its worker lives or not: if it does not, the
-- reconciler puts the job back in line. Inputs up to `inline` bytes come with it.
-- A job that has lost workers before makes its last attempt only with `alone` = 1: see Engine._serve.
local id, worker, max_attempts, inline = ARGV[1], ARGV[2], tonumber(ARGV[3]), tonumber(ARGV[4])
local alone = ARGV[5] == '1'
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
local attempts = tonumber(f[3])
if attempts >= max_attempts then
  close(id, 'failed', ERRORS.worker_lost, '', t)
  return {'failed'}
end
if attempts > 0 and attempts + 1 == max_attempts and not alone then return {'alone'} end
redis.call('HSET', k, 'state', 'running', 'worker', worker, 'started', int(t))
redis.call('HINCRBY', k, 'attempts', 1)
redis.call('ZREM', 'cq:queued:' .. f[5] .. ':' .. f[6], id)
tell_watchers(id)
local inputs = false
if tonumber(f[4]) <= inline then inputs = redis.call('GET', 'cq:in:' .. id) end
return {'yours', redis.call('HGETALL', k), inputs}
