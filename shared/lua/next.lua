-- The oldest jobs that wait in a lane, up to so many jobs and about so many items: what a worker with room takes.
local model, lane, jobs, items = ARGV[1], ARGV[2], tonumber(ARGV[3]), tonumber(ARGV[4])
local out, sum = {}, 0
for _, id in ipairs(redis.call('ZRANGE', 'cq:queued:' .. model .. ':' .. lane, 0, jobs - 1)) do
  out[#out + 1] = id
  sum = sum + tonumber(redis.call('HGET', job(id), 'total') or '0')
  if sum >= items then return out end
end
return out
