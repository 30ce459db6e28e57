-- What all scripts use. shared/store.py puts NEXT (the table of transitions), ERRORS and LANES before this text.
--
--   cq:job:ID            hash    the record
--   cq:in:ID, cq:out:ID  string  inputs and result (msgpack)
--   cq:open:MODEL        zset    unfinished jobs by time of arrival
--   cq:queued:MODEL:LANE zset    those of them that wait for a worker, by time of arrival
--   cq:load              hash    unfinished items by MODEL:LANE
--   cq:worker:ID         string  what a worker writes about itself; while it exists, the worker holds its jobs
--   cq:watch:ID          set     reply lists that get a message at each change of a job
--   cq:jobs:OWNER        zset    an owner's jobs by time of arrival
--   cq:idem:OWNER:KEY    string  job id and body digest of an idempotent submission; expires with its job

local function now()
  local t = redis.call('TIME')
  return tonumber(t[1]) * 1000 + math.floor(tonumber(t[2]) / 1000)
end

-- Lua itself writes large numbers with an exponent, such as 1.7e+12.
local function int(n) return string.format('%d', n) end

local function job(id) return 'cq:job:' .. id end

local function idem(owner, key) return 'cq:idem:' .. owner .. ':' .. key end

local function may(from, to) return from and NEXT[from] and NEXT[from][to] end

local function push(list, message)
  redis.call('RPUSH', list, message)
  redis.call('LTRIM', list, -20000, -1)
  redis.call('PEXPIRE', list, 60000)
end

local function tell_watchers(id)
  if redis.call('HGET', job(id), 'watched') then
    for _, list in ipairs(redis.call('SMEMBERS', 'cq:watch:' .. id)) do push(list, id) end
  end
end

-- The job that was submitted with an idempotency key: {'same' or 'reused', id}, or nil. After 'same', the caller relies
-- on this job, so it is marked as promised and cannot be discarded.
local function repeated(owner, key, digest)
  local first = redis.call('GET', idem(owner, key))
  if not first then return nil end
  local id = string.sub(first, 1, 32)
  local state = redis.call('HGET', job(id), 'state')
  if not state then return nil end
  if string.sub(first, 33) ~= digest then return {'reused', id} end
  if state == 'queued' then redis.call('HSET', job(id), 'promised', '1') end
  return {'same', id}
end

-- An owner's list is deleted if nothing is added for this time, which is longer than any deadline, ms.
local LONGEST = 31 * 86400 * 1000

-- Put a job on its owner's list.
local function list(owner, id, t, ttl)
  local key = 'cq:jobs:' .. owner
  -- For each new job, the two oldest are checked: so the list gets shorter as fast as records expire.
  for _, old in ipairs(redis.call('ZRANGE', key, 0, 1)) do
    if redis.call('EXISTS', job(old)) == 0 then redis.call('ZREM', key, old) end
  end
  redis.call('ZADD', key, t, id)
  redis.call('PEXPIRE', key, int(ttl + LONGEST))
end

-- End a job. Returns 1 if this call has ended it, 0 if it had ended before.
local function close(id, state, err, result, t)
  local k = job(id)
  local f = redis.call('HMGET', k, 'state', 'model', 'lane', 'total', 'reply', 'ttl', 'idem')
  if not may(f[1], state) then return 0 end
  -- A record that lacks a field, of another release or damaged, must be able to end too.
  local ttl = tonumber(f[6]) or 60000
  f[2], f[3] = f[2] or '', f[3] or ''
  redis.call('HSET', k, 'state', state, 'error', err, 'finished', int(t), 'expires', int(t + ttl))
  redis.call('ZREM', 'cq:open:' .. f[2], id)
  redis.call('ZREM', 'cq:queued:' .. f[2] .. ':' .. f[3], id)
  redis.call('HINCRBY', 'cq:load', f[2] .. ':' .. f[3], -(tonumber(f[4]) or 0))
  redis.call('DEL', 'cq:in:' .. id)
  if result ~= '' then redis.call('SET', 'cq:out:' .. id, result, 'PX', int(ttl)) end
  redis.call('PEXPIRE', k, int(ttl))
  if f[7] then redis.call('PEXPIRE', f[7], int(ttl)) end
  tell_watchers(id)
  redis.call('PEXPIRE', 'cq:watch:' .. id, int(ttl))
  if f[5] and f[5] ~= '' then push(f[5], id .. result) end
  return 1
end

-- Put a running job back in the queue, at its place by time of arrival.
local function requeue(id, model, lane, created)
  redis.call('HSET', job(id), 'state', 'queued', 'worker', '', 'sent', '0', 'done', '0', 'failed', '0')
  redis.call('ZADD', 'cq:queued:' .. model .. ':' .. lane, created, id)
  tell_watchers(id)
end
