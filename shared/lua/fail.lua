#!lua flags=allow-oom
--+ held transitions
-- End a job that no worker holds with an error: 1, or 0 if there is no such job (a repeated submission made none).
local id, err = ARGV[1], ARGV[2]
if redis.call('HGET', job(id), 'state') ~= 'queued' then return 0 end
return close(id, 'failed', err, '', now())
