-- Celery's messages, as shared/messages.py makes them: all but the ids of jobs.

local MOST = 64                     -- jobs that a message names
local MARK = '@jobs@'               -- stands where they belong
local BETWEEN = '\\", \\"'          -- two ids: the body is a string in JSON, and itself JSON
local ID = 32                       -- bytes of an id

-- Put references to jobs into a queue, at most MOST. With `join` they are added to the newest message that waits there, if
-- it has room: a message costs its worker as much as a short job does, and while one waits, whoever could take it is busy.
-- Without, a message only says that there is work, and as many as name jobs that wait are enough.
local function publish(queue, message, join, ids)
  local at = string.find(message, MARK, 1, true)
  local head = string.sub(message, 1, at - 1)
  if join then
    local newest = redis.call('LINDEX', queue, 0)
    if newest and string.sub(newest, 1, #head) == head then
      local last = string.find(newest, '\\"]', at, true)
      if (last - at + #BETWEEN) / (ID + #BETWEEN) + #ids <= MOST then
        local both = string.sub(newest, 1, last - 1) .. BETWEEN .. table.concat(ids, BETWEEN) .. string.sub(newest, last)
        redis.call('LSET', queue, 0, both)
        return
      end
    end
  elseif redis.call('LLEN', queue) >= MOST then
    return
  end
  redis.call('LPUSH', queue, head .. table.concat(ids, BETWEEN) .. string.sub(message, at + #MARK))
end
