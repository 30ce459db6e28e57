#!lua flags=allow-oom
--+ held transitions together
-- End jobs that this worker holds: for each 1, or 0 if it has ended already or another worker holds it.
local worker = ARGV[1]

local t, out = now(), {}
local write = together()
for i = 2, #ARGV, 7 do
  local id, state, err, result, done, failed, took = unpack(ARGV, i, i + 6)
  out[#out + 1] = close(id, state, err, result, t, worker, done, failed, took)
end
write()
return out
