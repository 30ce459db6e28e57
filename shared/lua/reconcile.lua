-- One page of a model's unfinished jobs: expire what is late, take back what a dead worker held, or what a live one has
-- not said for `neglected` ms that it holds (a store that lost its last writes forgets a job's end, and the worker has
-- none of it any more), and return what no message carries, as {next offset or -1, lane, id, lane, id, …}.
local model, offset, page = ARGV[1], tonumber(ARGV[2]), tonumber(ARGV[3])
local max_attempts, resend_after, resend_anyway = tonumber(ARGV[4]), tonumber(ARGV[5]), tonumber(ARGV[6])
local neglected = tonumber(ARGV[7])
local t = now()
local alive, waiting = {}, {}
local ids = redis.call('ZRANGE', 'cq:open:' .. model, offset, offset + page - 1)
local out = {#ids == page and offset + page or -1}
if offset == 0 and #ids == 0 then -- no job, no load, whatever evicted records have left in the sum
  for _, lane in ipairs(LANES) do redis.call('HDEL', 'cq:load', model .. ':' .. lane) end
end
for _, id in ipairs(ids) do
  local f = redis.call('HMGET', job(id), 'state', 'worker', 'deadline', 'attempts', 'lane', 'created', 'sent', 'led',
                       'started', 'held')
  local state, worker, deadline, lane, sent = f[1], f[2], tonumber(f[3] or '0'), f[5], tonumber(f[7] or '0')
  if not state then
    redis.call('ZREM', 'cq:open:' .. model, id) -- its record was evicted
    for _, lane in ipairs(LANES) do redis.call('ZREM', 'cq:queued:' .. model .. ':' .. lane, id) end
  else
    if state == 'running' then
      if alive[worker] == nil then alive[worker] = redis.call('EXISTS', 'cq:worker:' .. worker) == 1 end
      local said = math.max(tonumber(f[9] or '0'), tonumber(f[10] or '0'))
      if not alive[worker] or not f[8] and t - said > neglected then
        if f[8] then
          close(id, 'failed', ERRORS.leader_lost, '', t)
          state = 'failed'
        elseif tonumber(f[4]) >= max_attempts then
          close(id, 'failed', ERRORS.worker_lost, '', t)
        else
          requeue(id, model, lane, f[6])
          state, sent = 'queued', 0
        end
      end
    end
    if state == 'queued' then
      if deadline > 0 and deadline <= t then
        close(id, 'expired', ERRORS.expired, '', t)
      else
        if waiting[lane] == nil then waiting[lane] = redis.call('LLEN', 'clip.' .. model .. '.' .. lane) > 0 end
        -- While messages wait in the queue, a job's own message is most likely among them.
        if t - sent >= (waiting[lane] and sent > 0 and resend_anyway or resend_after) then
          redis.call('HSET', job(id), 'sent', int(t))
          out[#out + 1] = lane
          out[#out + 1] = id
        end
      end
    end
  end
end
return out
