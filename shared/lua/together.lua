-- For scripts that end several jobs: what their ends change in sums, lists and sets is written once for all of them.

-- From now on `hold`, `keep`, `add`, `push`, `remove` and `delete` only remember. What is returned does it.
local function together()
  local held, kept, sums, lists, sets, keys = {}, {}, {}, {}, {}, {}
  local hold_now, keep_now, add_now = hold, keep, add
  local push_now, remove_now, delete_now = push, remove, delete

  local function into(sum, name, n) sum[name] = (sum[name] or 0) + n end

  hold = function(owner, bytes) into(held, owner, bytes) end
  keep = function(owner, bytes, till)
    local _, second = bucket(till)
    kept[second] = kept[second] or {}
    into(kept[second], owner, bytes)
  end
  add = function(key, field, n)
    sums[key] = sums[key] or {}
    into(sums[key], field, tonumber(n))
  end
  push = function(list, message) onto(lists, list, message) end
  remove = function(set, member) onto(sets, set, member) end
  delete = function(key) table.insert(keys, key) end

  return function()
    for owner, bytes in pairs(held) do hold_now(owner, bytes) end
    for second, owners in pairs(kept) do
      for owner, bytes in pairs(owners) do keep_now(owner, bytes, tonumber(second) * 1000) end
    end
    for key, fields in pairs(sums) do
      for field, n in pairs(fields) do add_now(key, field, n) end
    end
    for list, messages in pairs(lists) do push_now(list, unpack(messages)) end
    for set, members in pairs(sets) do remove_now(set, unpack(members)) end
    if #keys > 0 then delete_now(unpack(keys)) end
  end
end
