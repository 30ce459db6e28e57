-- Common ground of every script. NEXT, the transition table, is put before this text from shared/job.py.
--
--   cq:job:ID            hash    the record
--   cq:in:ID, cq:out:ID  string  inputs and answer (msgpack)
--   cq:open:MODEL        zset    unfinished jobs by time of arrival
--   cq:queued:MODEL:LANE zset    those of them that wait for a worker
--   cq:load              hash    unfinished items by MODEL:LANE
--   cq:worker:ID         string  what a worker says of itself; its life is the lease on all that worker holds
--   cq:watch:ID          set     reply lists that want to hear of each change of a job
--   cq:jobs:OWNER        zset    an owner's jobs by time of arrival
--   cq:idem:OWNER:KEY    string  job id and body digest of an idempotent submission; lives as long as its job

local function now()
  local t = redis.call('TIME')
  return tonumber(t[1]) * 1000 + math.floor(tonumber(t[2]) / 1000)
end

-- Lua's own number formatting turns 1.7e12 into an exponent.
local function int(n) return string.format('%d', n) end

local function job(id) return 'cq:job:' .. id end

local function idem(owner, key) return 'cq:idem:' .. owner .. ':' .. key end

local function may(from, to) return from and NEXT[from] and NEXT[from][to] end

local function push(list, note)
  redis.call('RPUSH', list, note)
  redis.call('LTRIM', list, -20000, -1)
  redis.call('PEXPIRE', list, 60000)
end

local function tell_watchers(id)
  if redis.call('HGET', job(id), 'watched') then
    for _, list in ipairs(redis.call('SMEMBERS', 'cq:watch:' .. id)) do push(list, id) end
  end
end

-- The job that an idempotency key stands for: {'same' or 'reused', id}, or nil. Whoever hears 'same' has been promised
-- that job: from then on it cannot be forgotten.
local function repeated(owner, key, digest)
  local seen = redis.call('GET', idem(owner, key))
  if not seen then return nil end
  local id = string.sub(seen, 1, 32)
  local state = redis.call('HGET', job(id), 'state')
  if not state then return nil end
  if string.sub(seen, 33) ~= digest then return {'reused', id} end
  if state == 'queued' then redis.call('HSET', job(id), 'promised', '1') end
  return {'same', id}
end

-- An owner's list is dropped when nothing was added for this long: longer than any deadline, ms.
local LONGEST = 31 * 86400 * 1000

-- Put a job on its owner's list.
local function list(owner, id, t, ttl)
  local mine = 'cq:jobs:' .. owner
  -- Two looks at the oldest for each new one: the list shrinks as fast as records expire.
  for _, old in ipairs(redis.call('ZRANGE', mine, 0, 1)) do
    if redis.call('EXISTS', job(old)) == 0 then redis.call('ZREM', mine, old) end
  end
  redis.call('ZADD', mine, t, id)
  redis.call('PEXPIRE', mine, int(ttl + LONGEST))
end

-- End a job, once: returns 1 if it was this call that ended it.
local function close(id, state, err, answer, t)
  local k = job(id)
  local f = redis.call('HMGET', k, 'state', 'model', 'lane', 'total', 'reply', 'ttl', 'idem')
  if not may(f[1], state) then return 0 end
  local ttl = tonumber(f[6])
  redis.call('HSET', k, 'state', state, 'error', err, 'finished', int(t), 'expires', int(t + ttl))
  redis.call('ZREM', 'cq:open:' .. f[2], id)
  redis.call('ZREM', 'cq:queued:' .. f[2] .. ':' .. f[3], id)
  redis.call('HINCRBY', 'cq:load', f[2] .. ':' .. f[3], -tonumber(f[4]))
  redis.call('DEL', 'cq:in:' .. id)
  if answer ~= '' then redis.call('SET', 'cq:out:' .. id, answer, 'PX', int(ttl)) end
  redis.call('PEXPIRE', k, int(ttl))
  if f[7] then redis.call('PEXPIRE', f[7], int(ttl)) end
  tell_watchers(id)
  redis.call('PEXPIRE', 'cq:watch:' .. id, int(ttl))
  if f[5] and f[5] ~= '' then push(f[5], id .. answer) end
  return 1
end

-- Put a running job back in the line, at the place that its arrival gave it.
local function requeue(id, model, lane, created)
  redis.call('HSET', job(id), 'state', 'queued', 'worker', '', 'sent', '0', 'done', '0', 'failed', '0')
  redis.call('ZADD', 'cq:queued:' .. model .. ':' .. lane, created, id)
  tell_watchers(id)
end
