#!lua flags=allow-oom
-- What the live workers have written about themselves.
local out = {}
for _, id in ipairs(redis.call('SMEMBERS', 'cq:workers')) do
  local info = redis.call('GET', 'cq:worker:' .. id)
  if info then out[#out + 1] = info end
end
return out
