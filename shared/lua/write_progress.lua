#!lua flags=allow-oom
-- The worker that leads a run writes its progress, but for the counts that its heartbeat writes: {state, 1 if the run is
-- still this worker's}. `advanced` 1: shards were done, so that the workers lost before count no more.
local id, worker, rows, progress, advanced = ARGV[1], ARGV[2], ARGV[3], ARGV[4], ARGV[5]
local f = redis.call('HMGET', job(id), 'state', 'worker', 'done', 'failed')
if not f[1] then return {'', 0} end
if f[1] ~= 'running' or f[2] ~= worker then return {f[1], 0} end
redis.call('HSET', job(id), 'rows', rows, 'progress', progress)
if advanced == '1' then redis.call('HSET', job(id), 'attempts', '1') end
alive(id, (f[3] or '0') .. '+' .. (f[4] or '0'))
tell_watchers(id)
return {f[1], 1}
