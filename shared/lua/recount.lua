-- The sums of held.lua, made anew.

local RECOUNT = 30000 -- time between two counts, ms
local FEW = 10000 -- unfinished jobs, and seconds in which something expires, that are counted: more would hold up the
                  -- store. Sums stay as they are meanwhile
local OF_MAXMEMORY = 0.7 -- share of maxmemory that jobs may hold: the rest is for allocation and connections
local OF_SYSTEM = 0.5 -- share of the machine's memory, where the server has no maxmemory

-- What jobs may hold together, by the memory of the server; nil: unknown.
local function derived_limit()
  local info = redis.pcall('INFO', 'memory')
  if type(info) ~= 'string' then return nil end
  local max = tonumber(string.match(info, 'maxmemory:(%d+)') or '0')
  if max > 0 then return math.floor(OF_MAXMEMORY * max) end
  local system = tonumber(string.match(info, 'total_system_memory:(%d+)') or '0')
  return system > 0 and math.floor(OF_SYSTEM * system) or nil
end

-- Make the sums anew from records and buckets: evicted keys, and processes of an earlier release, which do not count,
-- have made them wrong.
local function count_anew(unfinished)
  local sums = {['*'] = 0}
  local function add(owner, bytes)
    sums[owner] = (sums[owner] or 0) + bytes
    sums['*'] = sums['*'] + bytes
  end
  for jobs in pairs(unfinished) do
    for _, id in ipairs(redis.call('ZRANGE', jobs, 0, -1)) do
      local f = redis.call('HMGET', job(id), 'owner', 'bytes', 'size', 'state')
      if f[1] and (jobs ~= 'cq:runs' or may(f[4], 'cancelled')) then
        local bytes = tonumber(f[2] or '')
        if not bytes then
          bytes = RECORD + tonumber(f[3] or '0')
          redis.call('HSET', job(id), 'bytes', int(bytes))
        end
        add(f[1], bytes)
      end
    end
  end
  for _, second in ipairs(redis.call('ZRANGE', 'cq:kept', 0, -1)) do
    local bucket = redis.call('HGETALL', 'cq:kept:' .. second)
    for i = 1, #bucket, 2 do add(bucket[i], tonumber(bucket[i + 1])) end
    if #bucket == 0 then redis.call('ZREM', 'cq:kept', second) end
  end
  redis.call('DEL', 'cq:held')
  for owner, bytes in pairs(sums) do
    if bytes > 0 then redis.call('HSET', 'cq:held', owner, int(bytes)) end
  end
end

local function recount()
  local unfinished, jobs = {['cq:runs'] = true}, 0
  for _, place in ipairs(redis.call('HKEYS', 'cq:load')) do
    unfinished['cq:open:' .. string.match(place, '^(.*):')] = true
  end
  for set in pairs(unfinished) do jobs = jobs + redis.call('ZCARD', set) end
  if jobs <= FEW and redis.call('ZCARD', 'cq:kept') <= FEW then count_anew(unfinished) end
  local limit = derived_limit()
  if limit then redis.call('HSET', 'cq:held', 'limit', int(limit)) end
end
