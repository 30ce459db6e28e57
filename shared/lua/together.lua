-- For scripts that end several jobs: what their ends change in sums and lists is added up, and each is written once.

-- From now on `hold`, `keep`, `add` and `push` only remember. What is returned writes it.
local function together()
  local held, kept, sums, lists = {}, {}, {}, {}
  local hold_now, keep_now, add_now, push_now = hold, keep, add, push

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
  push = function(list, message)
    lists[list] = lists[list] or {}
    table.insert(lists[list], message)
  end

  return function()
    for owner, bytes in pairs(held) do hold_now(owner, bytes) end
    for second, owners in pairs(kept) do
      for owner, bytes in pairs(owners) do keep_now(owner, bytes, tonumber(second) * 1000) end
    end
    for key, fields in pairs(sums) do
      for field, n in pairs(fields) do add_now(key, field, n) end
    end
    for list, messages in pairs(lists) do push_now(list, unpack(messages)) end
  end
end
