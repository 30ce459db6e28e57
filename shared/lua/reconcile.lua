#!lua flags=allow-oom
--+ held recount transitions
-- Reconcile one page of a model's unfinished jobs:
-- * expire each job whose deadline has passed,
-- * put each job of a dead worker back in the queue, and each job that its live worker has not named for `neglected` ms
--   (a store that has lost its last writes may have lost the end of a job: its worker does not know the job any more),
-- * return the jobs that no message refers to, as {next offset or -1, lane, id, lane, id, …}.
local model, offset, page = ARGV[1], tonumber(ARGV[2]), tonumber(ARGV[3])
local max_attempts, resend_after, resend_anyway = tonumber(ARGV[4]), tonumber(ARGV[5]), tonumber(ARGV[6])
local neglected = tonumber(ARGV[7])
local t = now()
local alive, waiting = {}, {}
local ids = redis.call('ZRANGE', 'cq:open:' .. model, offset, offset + page - 1)
local out = {#ids == page and offset + page or -1}
if offset == 0 then
  sweep(t)
  if redis.call('SET', 'cq:recount', '1', 'NX', 'PX', RECOUNT) then recount() end
end
if offset == 0 and #ids == 0 then -- without jobs the load is 0; evicted records may have left a rest
  for _, lane in ipairs(LANES) do redis.call('HDEL', 'cq:load', model .. ':' .. lane) end
end
for _, id in ipairs(ids) do
  local f = redis.call('HMGET', job(id), 'state', 'worker', 'deadline', 'attempts', 'lane', 'created', 'sent', 'led',
                       'started', 'held')
  local state, worker, deadline, lane, sent = f[1], f[2], tonumber(f[3] or '0'), f[5], tonumber(f[7] or '0')
  if not state or not lane then
    redis.call('ZREM', 'cq:open:' .. model, id) -- its record was evicted
    for _, lane in ipairs(LANES) do redis.call('ZREM', 'cq:queued:' .. model .. ':' .. lane, id) end
  else
    if state == 'running' then
      if alive[worker] == nil then alive[worker] = redis.call('EXISTS', 'cq:worker:' .. worker) == 1 end
      local named = math.max(tonumber(f[9] or '0'), tonumber(f[10] or '0'))
      if not alive[worker] or not f[8] and t - named > neglected then
        if f[8] then
          close(id, 'failed', ERRORS.leader_lost, '', t)
          state = 'failed'
        elseif (tonumber(f[4]) or 0) >= max_attempts then
          close(id, 'failed', ERRORS.worker_lost, '', t)
        else
          requeue(id, model, lane, tonumber(f[6]) and f[6] or int(t))
          count('requeued', lane, model)
          state, sent = 'queued', 0
        end
      end
    end
    if state == 'queued' then
      if deadline > 0 and deadline <= t then
        close(id, 'expired', ERRORS.expired, '', t)
      else
        if waiting[lane] == nil then waiting[lane] = redis.call('LLEN', 'clip.' .. model .. '.' .. lane) > 0 end
        -- While messages wait in the queue, the job's message is probably one of them.
        if t - sent >= (waiting[lane] and sent > 0 and resend_anyway or resend_after) then
          redis.call('HSET', job(id), 'sent', int(t))
          count('resent', lane, model)
          out[#out + 1] = lane
          out[#out + 1] = id
        end
      end
    end
  end
end
return out
