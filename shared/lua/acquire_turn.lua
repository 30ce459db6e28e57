#!lua flags=allow-oom
-- Whether this process reconciles now: 1, or 0 if another has done it within PERIOD ms. What an earlier release does not
-- know has turns of its own: `what` is appended to the lock's name.
local what = ARGV[3] or ''
return redis.call('SET', 'cq:reconciler' .. what, ARGV[1], 'NX', 'PX', ARGV[2]) and 1 or 0
