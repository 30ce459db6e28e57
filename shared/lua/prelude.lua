-- What all scripts use. shared/store.py puts NEXT (the table of transitions), ERRORS, LANES and CLAIMED before this text
-- where they are used, and the parts that a script names after it.
--
--   cq:job:ID            hash    the record
--   cq:in:ID, cq:out:ID  string  inputs and result (msgpack)
--   cq:open:MODEL        zset    unfinished jobs by the time when reconciling looks at them: RUNNING, or the deadline of a
--                                job that waits, or NEVER after its arrival (an earlier release writes the time of
--                                arrival: due at once)
--   cq:queued:MODEL:LANE zset    those of them that wait for a worker, by time of arrival
--   cq:runs              zset    unfinished runs that workers lead, by time of arrival; they are in none of the above
--   cq:live_runs         zset    unfinished runs, whoever leads them, by the time when their rows last grew
--   cq:load              hash    unfinished items by MODEL:LANE
--   cq:worker:ID         string  what a worker writes about itself; while it exists, the worker holds its jobs
--   cq:totals            hash    jobs ended by state, put back and sent again, workers lost, rows of shards that were
--                                done or failed, by EVENT:LANE:MODEL
--   cq:watch:ID          set     reply lists that get a message at each change of a job
--   cq:jobs:OWNER        zset    an owner's jobs by time of arrival
--   cq:idem:OWNER:KEY    string  job id and body digest of an idempotent submission; expires with its job

local function now()
  local t = redis.call('TIME')
  return tonumber(t[1]) * 1000 + math.floor(tonumber(t[2]) / 1000)
end

-- Lua itself writes large numbers with an exponent, such as 1.7e+12.
local function int(n) return string.format('%d', n) end

-- Times in cq:open. What never is due stands there by time of arrival all the same: then the jobs that are put into a long
-- queue, and that are taken from it, are neighbours in the set, and in the processor's caches.
local RUNNING, NEVER = '0', 1e14

local function job(id) return 'cq:job:' .. id end

local function idem(owner, key) return 'cq:idem:' .. owner .. ':' .. key end

local function may(from, to) return from and NEXT[from] and NEXT[from][to] end

-- Append to a list of a table of lists.
local function onto(lists, name, ...)
  local list = lists[name] or {}
  lists[name] = list
  for _, value in ipairs({...}) do list[#list + 1] = value end
end

local function remove(set, ...) redis.call('ZREM', set, ...) end

local function delete(...) redis.call('DEL', ...) end

local function add(key, field, n) redis.call('HINCRBY', key, field, int(n)) end

-- Count an event of a model's lane, '' where it has none, in cq:totals, for good.
local function count(event, lane, model, times)
  add('cq:totals', event .. ':' .. lane .. ':' .. model, times or 1)
end

-- Note that a run is under way, and since when its rows have not grown. `rows` is how many there are, as a string.
local function alive(id, rows)
  if redis.call('HGET', job(id), 'counted') == rows then
    redis.call('ZADD', 'cq:live_runs', 'NX', int(now()), id)
  else
    redis.call('HSET', job(id), 'counted', rows)
    redis.call('ZADD', 'cq:live_runs', int(now()), id)
  end
end

local function push(list, ...)
  redis.call('RPUSH', list, ...)
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

-- Take those of a list that have no record any more off it. Whether there were any.
local function take_off(key, ids)
  local records = {}
  for i, id in ipairs(ids) do records[i] = job(id) end
  if #ids == 0 or redis.call('EXISTS', unpack(records)) == #ids then return false end
  for i, id in ipairs(ids) do
    if redis.call('EXISTS', records[i]) == 0 then redis.call('ZREM', key, id) end
  end
  return true
end

-- Put a job on its owner's list.
local function list(owner, id, t, ttl)
  local key = 'cq:jobs:' .. owner
  -- For each new job, the two oldest are checked: so the list gets shorter as fast as records expire. Where those are
  -- jobs that take days, some by chance are.
  if not take_off(key, redis.call('ZRANGE', key, 0, 1)) then take_off(key, redis.call('ZRANDMEMBER', key, 4)) end
  redis.call('ZADD', key, t, id)
  redis.call('PEXPIRE', key, int(ttl + LONGEST))
end
