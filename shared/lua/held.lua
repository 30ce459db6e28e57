-- How many bytes the store holds, together and for each owner: inputs of unfinished jobs, with room for their results,
-- and records and results of finished ones until they expire.
--
--   cq:held         hash  bytes by OWNER; '*': together; 'limit': most of them, derived from the server's memory
--   cq:kept         zset  the seconds in which something expires
--   cq:kept:SECOND  hash  bytes that expire in this second, by OWNER
--
-- The record of an unfinished job says in `bytes` what it counts for. A process of an earlier release counts nothing, so
-- the sums are made anew from time to time (recount.lua).

local RECORD = 768         -- bytes of a record with its keys, about
local BUCKETS = 1000       -- seconds that one sweep clears at most
local GRACE = 5000         -- time after a synchronous request's deadline in which its result may still be read, ms

local function hold(owner, bytes)
  bytes = int(bytes)
  if redis.call('HINCRBY', 'cq:held', owner, bytes) <= 0 then redis.call('HDEL', 'cq:held', owner) end
  if redis.call('HINCRBY', 'cq:held', '*', bytes) <= 0 then redis.call('HDEL', 'cq:held', '*') end
end

-- Where bytes count that expire at a time, and the second that it stands for.
local function bucket(till)
  local second = int(math.ceil(till / 1000))
  return 'cq:kept:' .. second, second
end

-- Count bytes, which are held already, until a time.
local function keep(owner, bytes, till)
  local name, second = bucket(till)
  if redis.call('HINCRBY', name, owner, int(bytes)) == bytes then -- the owner's first
    redis.call('ZADD', 'cq:kept', second, second)
    redis.call('EXPIREAT', name, int(second + 86400)) -- in case cq:kept is lost
  end
end

-- How long the result of a synchronous request stays, ms: nobody asks for it after the request's deadline.
local function result_ttl(ttl, deadline, finished)
  deadline = tonumber(deadline)
  return deadline and math.min(ttl, math.max(0, deadline - finished) + GRACE) or ttl
end

-- Subtract what has expired.
local function sweep(t)
  for _, second in ipairs(redis.call('ZRANGEBYSCORE', 'cq:kept', '-inf', int(math.floor(t / 1000)), 'LIMIT', 0, BUCKETS)) do
    local bucket = redis.call('HGETALL', 'cq:kept:' .. second)
    for i = 1, #bucket, 2 do hold(bucket[i], -tonumber(bucket[i + 1])) end
    redis.call('DEL', 'cq:kept:' .. second)
    redis.call('ZREM', 'cq:kept', second)
  end
end

-- Seconds until so much of an owner's ('*': of all) has expired, at most a minute.
local function room_in(owner, bytes, t)
  for _, second in ipairs(redis.call('ZRANGEBYSCORE', 'cq:kept', int(math.floor(t / 1000)), int(math.floor(t / 1000) + 60))) do
    if owner == '*' then
      for _, n in ipairs(redis.call('HVALS', 'cq:kept:' .. second)) do bytes = bytes - tonumber(n) end
    else
      bytes = bytes - tonumber(redis.call('HGET', 'cq:kept:' .. second, owner) or '0')
    end
    if bytes <= 0 then return int(math.max(1, math.ceil(second - t / 1000))) end
  end
  return '60'
end

-- Hold the bytes of a new job if there is room: nil, or its refusal {'held', owner or '*', held, limit, seconds}.
-- `limit` 0: what the server's memory allows; below 0: none. One owner may hold `share` of it.
local function admit(owner, bytes, limit, share, t)
  for attempt = 1, 2 do
    local f = redis.call('HMGET', 'cq:held', owner, '*', 'limit')
    local held, together = tonumber(f[1] or '0'), tonumber(f[2] or '0')
    local all = limit == 0 and tonumber(f[3] or '-1') or limit
    local own = math.floor(all * share)
    local whose, has, most = owner, held, own
    if all < 0 or held + bytes <= own and together + bytes <= all then
      redis.call('HSET', 'cq:held', owner, int(held + bytes), '*', int(together + bytes))
      return nil
    end
    if held + bytes <= own or own == all then whose, has, most = '*', together, all end
    if attempt == 2 then
      return {'held', whose, int(has), int(most), room_in(whose, has + bytes - most, t)}
    end
    sweep(t)
  end
end
