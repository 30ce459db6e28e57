#!lua flags=allow-oom
-- A page of an owner's jobs, newest first, after a cursor: {next cursor or '', record, record, …}.
-- A cursor is CREATED:ID, so it is still valid when the job of this id has expired.
local owner, state, limit, cursor = ARGV[1], ARGV[2], tonumber(ARGV[3]), ARGV[4]
local key = 'cq:jobs:' .. owner
local start = 0
if cursor ~= '' then
  local created, before = string.match(cursor, '^(%d+):(%x+)$')
  if not created then return {''} end
  local rank = redis.call('ZREVRANK', key, before)
  start = rank and rank + 1 or redis.call('ZCOUNT', key, '(' .. created, '+inf')
end
local out, scanned, last = {''}, 0, ''
while scanned < 2000 do
  local ids = redis.call('ZREVRANGE', key, start, start + 99, 'WITHSCORES')
  if #ids == 0 then return out end
  for i = 1, #ids, 2 do
    scanned = scanned + 1
    local id, found = ids[i], redis.call('HGET', job(ids[i]), 'state')
    last = int(tonumber(ids[i + 1])) .. ':' .. id
    if not found then
      redis.call('ZREM', key, id)
    else
      start = start + 1
      if state == '' or state == found then
        out[#out + 1] = redis.call('HGETALL', job(id))
        if #out > limit then
          out[1] = last
          return out
        end
      end
    end
  end
end
out[1] = last
return out
