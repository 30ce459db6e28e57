#!lua flags=allow-oom
-- What the store holds now, for each of the models ARGV[1], ARGV[2], …:
-- {bytes held, their limit or false, totals, {model, unfinished jobs, {lane, items, jobs that wait, age of the oldest of
-- them in ms or -1}, …}, …}.
local t = now()
local held = redis.call('HMGET', 'cq:held', '*', 'limit')
local out = {held[1] or '0', held[2], redis.call('HGETALL', 'cq:totals')}
for _, model in ipairs(ARGV) do
  local of_model = {model, redis.call('ZCARD', 'cq:open:' .. model)}
  for _, lane in ipairs(LANES) do
    local place = model .. ':' .. lane
    local oldest = redis.call('ZRANGE', 'cq:queued:' .. place, 0, 0, 'WITHSCORES')[2]
    of_model[#of_model + 1] = {lane, redis.call('HGET', 'cq:load', place) or '0', redis.call('ZCARD', 'cq:queued:' .. place),
                               oldest and int(math.max(0, t - tonumber(oldest))) or '-1'}
  end
  out[#out + 1] = of_model
end
return out
