#!lua flags=allow-oom
-- What the live workers have written about themselves. Dead workers are removed from the set.
local out = {}
for _, id in ipairs(redis.call('SMEMBERS', 'cq:workers')) do
  local info = redis.call('GET', 'cq:worker:' .. id)
  if info then
    out[#out + 1] = info
  else
    redis.call('SREM', 'cq:workers', id)
    count('worker_lost', '', '') -- one that ends by itself takes its name from the set
  end
end
return out
