#!lua flags=allow-oom
-- What the store holds now, for each of the models ARGV[1], ARGV[2], …:
-- {bytes held, their limit or false, totals, {{model of a run under way, ms since its rows grew, progress}, …}, {model, unfinished jobs, {lane, items, jobs that wait, age of the oldest of
-- them in ms or -1}, …}, …}.
local t = now()
local held = redis.call('HMGET', 'cq:held', '*', 'limit')
local runs = {}
local found = redis.call('ZRANGE', 'cq:live_runs', 0, -1, 'WITHSCORES')
for i = 1, #found, 2 do
  local f = redis.call('HMGET', job(found[i]), 'state', 'model', 'progress')
  if may(f[1], 'cancelled') then
    runs[#runs + 1] = {f[2] or '', int(math.max(0, t - tonumber(found[i + 1]))), f[3] or ''}
  else
    redis.call('ZREM', 'cq:live_runs', found[i]) -- ended by an earlier release, which does not know this set
  end
end
local out = {held[1] or '0', held[2], redis.call('HGETALL', 'cq:totals'), runs}
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
