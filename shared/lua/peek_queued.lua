-- The oldest jobs that wait in a lane: at most `jobs` of them, with about `items` items together. {jobs passed over, id…}
-- With `max_attempts` 0, those that have lost no worker. Otherwise those that have: each with more than one attempt left,
-- or, if the oldest has one left, this job and no other.
local model, lane, jobs, items = ARGV[1], ARGV[2], tonumber(ARGV[3]), tonumber(ARGV[4])
local max_attempts = tonumber(ARGV[5])
local queued = 'cq:queued:' .. model .. ':' .. lane
local out, sum, start = {0}, 0, 0
while start < 2000 do
  local ids = redis.call('ZRANGE', queued, start, start + math.max(jobs, 50) - 1)
  if #ids == 0 then return out end
  for _, id in ipairs(ids) do
    local f = redis.call('HMGET', job(id), 'total', 'attempts')
    local attempts = tonumber(f[2]) or 0
    start = start + 1
    if not f[1] then
      redis.call('ZREM', queued, id) -- its record was evicted
      start = start - 1
    elseif (attempts > 0) ~= (max_attempts > 0) then
      out[1] = out[1] + 1
    elseif max_attempts > 0 and attempts + 1 >= max_attempts then
      if #out == 1 then return {out[1], id} end
    else
      out[#out + 1] = id
      sum = sum + (tonumber(f[1]) or 0)
      if #out > jobs or sum >= items then return out end
    end
  end
end
return out
