#!lua flags=allow-oom
-- The run that a worker is to lead next, of these models: its id, or false. Of the owners whose runs wait, one that has
-- the fewest under way comes first, and of this owner's the oldest.
local models, waiting, under_way = {}, {}, {}
for i = 1, #ARGV do models[ARGV[i]] = true end
for _, id in ipairs(redis.call('ZRANGE', 'cq:runs', 0, -1)) do
  local f = redis.call('HMGET', job(id), 'state', 'owner', 'model')
  if f[1] == 'running' then
    under_way[f[2]] = (under_way[f[2]] or 0) + 1
  elseif f[1] == 'queued' and models[f[3]] then
    waiting[#waiting + 1] = {id, f[2]}
  end
end
local best, least = false, nil
for _, run in ipairs(waiting) do
  local has = under_way[run[2]] or 0
  if not best or has < least then best, least = run[1], has end
end
return best
