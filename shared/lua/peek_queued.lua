#!lua flags=allow-oom
-- The ids of the oldest jobs that wait in a lane: at most `jobs` of them, with about `items` items together.
local model, lane, jobs, items = ARGV[1], ARGV[2], tonumber(ARGV[3]), tonumber(ARGV[4])
local queued = 'cq:queued:' .. model .. ':' .. lane
local out, sum = {}, 0
for _, id in ipairs(redis.call('ZRANGE', queued, 0, jobs - 1)) do
  local total = redis.call('HGET', job(id), 'total')
  if total then
    out[#out + 1] = id
    sum = sum + tonumber(total)
    if sum >= items then return out end
  else
    redis.call('ZREM', queued, id) -- its record was evicted
  end
end
return out
