"""
What has to happen in one step, as Lua that runs inside Redis.

An XACK or XCLAIM by somebody who does not hold the entry succeeds; so each is preceded
by a look at who does, and nothing can come between. Times are Redis's own. All keys
of a call are in one slot: see `redis_stream_keys`.
"""

from __future__ import annotations

import hashlib

from .redis_stream_keys import (
    DEAD_ENTRIES,
    KEEP,
    PARKED,
    REMEMBER,
)


class Script:
    """A Lua text and its SHA1, by which the server knows it."""

    def __init__(self, text: str) -> None:
        self.text = _COMMON + text
        self.sha = hashlib.sha1(self.text.encode(), usedforsecurity=False).hexdigest()


_COMMON = (
    f"""
local PARKED, KEEP, REMEMBER = '{PARKED}', {KEEP}, {REMEMBER}
local DEAD_ENTRIES = {DEAD_ENTRIES}
"""
    + """
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)

local function fields(flat)
  local found = {}
  for i = 1, #flat, 2 do found[flat[i]] = flat[i + 1] end
  return found
end

local function group_of(stream, name)
  if redis.call('EXISTS', stream) == 0 then return nil end
  for _, flat in ipairs(redis.call('XINFO', 'GROUPS', stream)) do
    local group = fields(flat)
    if group.name == name then return group end
  end
  return nil
end

local function split(id)
  local ms, seq = string.match(id, '^(%d+)-(%d+)$')
  return tonumber(ms), tonumber(seq)
end

local function less(a, b)
  local a_ms, a_seq = split(a)
  local b_ms, b_seq = split(b)
  if a_ms ~= b_ms then return a_ms < b_ms end
  return a_seq < b_seq
end

-- The next id; a seq that a double cannot hold gives the same one.
local function after(id)
  local ms, seq = split(id)
  return seq < 1e15 and string.format('%.0f-%.0f', ms, seq + 1) or id
end

-- The greatest id below this one; a seq that a double cannot hold gives a lower one.
local function before(id)
  local ms, seq = split(id)
  if seq > 0 and seq < 1e15 then return string.format('%.0f-%.0f', ms, seq - 1) end
  if ms == 0 then return '0-0' end
  return string.format('%.0f-18446744073709551615', ms - 1)
end

local function pending(stream, group, id)
  local found = redis.pcall('XPENDING', stream, group, id, id, 1)
  if found.err then
    if string.find(found.err, 'NOGROUP', 1, true) then return nil end
    error(found)
  end
  return found[1]
end

-- What somebody has let down is held under a second name: that outlives a lost reply.
local function is(owner, me) return owner == me or owner == me .. '!' end

-- Whether nobody else can have had it: what was in the stream is gone, or the server
-- knows nothing of its having been read (a failover may forget that).
local function unknown(stream, group, id, epochs, epoch)
  if redis.call('HGET', epochs, 'id') ~= epoch then
    local since = redis.call('HGET', epochs, 'since')
    if not since or split(id) < tonumber(since) then return true end
  end
  local found = group_of(stream, group)
  return found == nil or less(found['last-delivered-id'], id)
end

-- How a claim stands: 'mine', 'done' (given up, its reply was lost), 'free' or 'lost'.
local function standing(stream, group, me, id, epochs, epoch, settled, token)
  if redis.call('ZSCORE', settled, token) then return 'done' end
  local entry = pending(stream, group, id)
  if entry then return is(entry[2], me) and 'mine' or 'lost', entry[4], entry[2] end
  return unknown(stream, group, id, epochs, epoch) and 'free' or 'lost'
end

local function note(settled, token)
  redis.call('ZADD', settled, now, token)
  redis.call('ZREMRANGEBYSCORE', settled, '-inf', now - REMEMBER * 1000)
  redis.call('EXPIRE', settled, REMEMBER)
end

-- XADD; a key that is no stream, or forbidden, is somebody's fault who is told: not raised.
local function append(key, limit, ...)
  local id = redis.pcall('XADD', key, 'MAXLEN', '~', limit, '*', ...)
  if type(id) == 'table' and id.err then
    for _, fault in ipairs({'WRONGTYPE', "can't access"}) do
      if string.find(id.err, fault, 1, true) then return nil, id.err end
    end
    error(id)
  end
  return id, ''
end

-- What a client names may be anybody's; a key that does not expire is no feedback stream.
local function keep(key, payload, length, expiry)
  if redis.call('TTL', key) == -1 then
    local stat = redis.pcall('XINFO', 'STREAM', key)
    if stat.err then return nil, stat.err end
    -- A stream that nothing was ever added to is what a client's XGROUP CREATE MKSTREAM
    -- makes; an empty one that has had entries is somebody's queue.
    if fields(stat)['entries-added'] ~= 0 then
      return nil, 'the key exists and does not expire'
    end
    for _, flat in ipairs(redis.call('XINFO', 'GROUPS', key)) do
      local name = fields(flat).name
      if string.find(name, '^node:') or string.find(name, '^pool:') then
        return nil, 'agents read requests there'
      end
    end
  end
  local id, wrong = append(key, length, 'response', payload)
  if id then redis.call('EXPIRE', key, expiry) end
  return id, wrong
end

-- Returns: what is wrong with the dead letters, or ''.
local function bury(dead, request, reason, attempts, group, node, stream, id)
  local _, wrong = append(dead, DEAD_ENTRIES, 'request', request, 'reason', reason,
    'attempts', attempts, 'group', group, 'node', node, 'stream', stream, 'entry', id,
    'failed', string.format('%.3f', now / 1000))
  return wrong
end

-- XCLAIM forgets an entry that somebody has deleted from the stream, and says nothing.
local function there(stream, id) return #redis.call('XRANGE', stream, id, id) > 0 end

-- Whether somebody who lives has one that was deleted: the group does not show its lease.
local function lasts(settled, group, id, lease)
  local renewed = redis.call('ZSCORE', settled, 'held:' .. group .. ':' .. id)
  return renewed and now - renewed < lease
end

local function bury_deleted(dead, attempts, group, node, stream, id)
  bury(dead, '', 'deleted from the stream before it was handled', attempts, group, node,
    stream, id)
  redis.call('XACK', stream, group, id)
end
"""
)

# Keys: stream, groups, epoch. Arguments: group, retention or '', expiry, token; ms.
# Returns: made now (1 or 0), had been there before (1 or 0), epoch.
JOIN = Script("""
local stream, groups, epochs = unpack(KEYS)
local name, retention, expiry, token = unpack(ARGV)
local epoch = redis.call('HGET', epochs, 'id')
local exists = redis.call('EXISTS', stream) == 1
local stat = exists and fields(redis.call('XINFO', 'STREAM', stream)) or {}
local added = stat['entries-added'] or 0
local afresh = not epoch or added < tonumber(redis.call('HGET', epochs, 'added') or 0)
if afresh then
  -- Whatever is older than the first entry of now was in the stream that is gone.
  local first = stat['first-entry'] and split(stat['first-entry'][1]) or now
  epoch = token
  redis.call('HSET', epochs, 'id', epoch, 'since', string.format('%.0f', math.min(first, now)))
end
redis.call('HSET', epochs, 'added', added)
redis.call('EXPIRE', epochs, KEEP)

local known = redis.call('HGET', groups, name)
local handled = known and string.match(known, '|([^|]*)$') or ''
local made = 0
if not group_of(stream, name) then
  local start = handled
  if afresh or start == '' then
    -- The oldest that may still be wanted, never the end: who comes late takes part.
    start = retention == '' and '0' or string.format('%.0f-0', math.max(now - retention, 0))
  end
  redis.call('XGROUP', 'CREATE', stream, name, start, 'MKSTREAM')
  handled = ''
  made = 1
end
local value = string.format('%.0f|%s|%s|%s', now, retention, expiry, handled)
redis.call('HSET', groups, name, value)
redis.call('EXPIRE', groups, KEEP)
if redis.call('TTL', stream) ~= -1 then redis.pcall('PERSIST', stream) end
return {made, known and 1 or 0, epoch}
""")

# Keys: stream, delayed, settled, dead. Arguments: group, consumer, what its name and that of
# its predecessors begins with, what the names of this process begin with, lease (ms),
# how many at most, idle time after which a consumer without entries is removed (ms), node.
# Returns: ms until the next is due or -1, a list of {id, let down (1 or 0), attempt, fields},
# and the ids of those that were deleted from the stream, and are among the dead letters now.
TAKE = Script("""
local stream, delayed, settled, dead = unpack(KEYS)
local group, me, kin, living, lease, room, rest, node = unpack(ARGV)
lease, room, rest = tonumber(lease), tonumber(room), tonumber(rest)
local taken, deleted = {}, {}

local function claim(id, mark, ...)
  if not there(stream, id) then
    bury_deleted(dead, pending(stream, group, id)[4], group, node, stream, id)
    table.insert(deleted, id)
    return
  end
  local got = redis.call('XCLAIM', stream, group, me .. mark, 0, id, ...)
  table.insert(taken, {id, #mark, pending(stream, group, id)[4], got[1][2]})
  room = room - 1
end

if room > 0 then
  for _, member in ipairs(redis.call('ZRANGEBYSCORE', delayed, '-inf', now, 'LIMIT', 0, room)) do
    local id, mark = string.match(member, '^([%d-]+)(!?)$')
    redis.call('ZREM', delayed, member)
    local entry = id and pending(stream, group, id)
    if entry and entry[2] == PARKED then claim(id, mark) end
  end
end

local function begins(text, with) return string.sub(text, 1, #with) == with end

for _, flat in ipairs(redis.call('XINFO', 'CONSUMERS', stream, group)) do
  local other = fields(flat)
  if other.name == PARKED then
    if other.pending > redis.call('ZCARD', delayed) then  -- somebody has deleted the set
      for _, entry in ipairs(redis.call('XPENDING', stream, group, '-', '+', 1000, PARKED)) do
        if not redis.call('ZSCORE', delayed, entry[1] .. '!') then
          redis.call('ZADD', delayed, 'NX', now, entry[1])
        end
      end
      redis.call('EXPIRE', delayed, KEEP)
    end
  elseif other.pending == 0 then
    if not is(other.name, me) and other.idle > rest then
      redis.call('XGROUP', 'DELCONSUMER', stream, group, other.name)
    end
  elseif room > 0 then
    -- Of one agent there is one process at a time: an earlier one is surely dead.
    local dead_kin = begins(other.name, kin) and not begins(other.name, living)
    local idle = dead_kin and 0 or lease
    local held = redis.call('XPENDING', stream, group, 'IDLE', idle, '-', '+', room, other.name)
    for _, entry in ipairs(held) do
      if not dead_kin and lasts(settled, group, entry[1], lease) then
        -- it is somebody's who lives
      elseif is(other.name, me) then  -- it was read, and the reply was lost: not an attempt
        claim(entry[1], string.sub(other.name, #me + 1), 'RETRYCOUNT', entry[4])
      else
        claim(entry[1], '!')
      end
    end
  end
end
local first = redis.call('ZRANGE', delayed, 0, 0, 'WITHSCORES')
return {first[2] and math.max(first[2] - now, 0) or -1, taken, deleted}
""")

# Keys: stream, epoch, settled. Arguments: group, consumer, and for each claim: id, epoch.
# Returns: ids that are lost.
RENEW = Script("""
local stream, epochs, settled = unpack(KEYS)
local group, me = ARGV[1], ARGV[2]
local lost = {}
for i = 3, #ARGV, 2 do
  local id, epoch = ARGV[i], ARGV[i + 1]
  local entry = pending(stream, group, id)
  if entry and is(entry[2], me) then
    if there(stream, id) then
      redis.call('XCLAIM', stream, group, entry[2], 0, id, 'JUSTID')
    else  -- it is ours all the same, and will be answered
      note(settled, 'held:' .. group .. ':' .. id)
    end
  elseif entry or not unknown(stream, group, id, epochs, epoch) then
    table.insert(lost, id)
  end
end
return lost
""")

# Keys: stream, epoch, settled, dead, the feedback stream if there is one. Arguments: group,
# consumer, epoch, id, token, address, payload, failure, request, attempts, node,
# and how long the feedback stream may be, and be kept (s).
# Returns: how the claim stood; what is wrong with the feedback stream, with the address and
# with the dead letters, or ''.
SETTLE = Script("""
local stream, epochs, settled, dead, feedback = unpack(KEYS)
local group, me, epoch, id, token, address, payload, failure, request, attempts, node = unpack(ARGV)
local length, expiry = ARGV[12], ARGV[13]
local how = standing(stream, group, me, id, epochs, epoch, settled, token)
if how == 'lost' or how == 'done' then return {how, '', '', ''} end
local entry, wrong, unheard, unburied = nil, '', '', ''
if feedback then
  entry, wrong = keep(feedback, payload, length, expiry)
end
if failure ~= '' then
  local fine, problem = pcall(bury, dead, request, failure, attempts, group, node, stream, id)
  if not fine then
    if entry then redis.call('XDEL', feedback, entry) end
    error(problem)
  end
  unburied = problem
end
-- A channel that is forbidden must not make it run again: the response is kept already.
local heard = 0
if address ~= '' then
  heard = redis.pcall('PUBLISH', address, payload)
elseif entry then
  heard = redis.pcall('PUBLISH', feedback, entry)
end
if type(heard) == 'table' then unheard = heard.err end
if how == 'mine' then redis.call('XACK', stream, group, id) end
note(settled, token)
return {how, wrong, unheard, unburied}
""")

# Keys: the feedback stream, which is in a slot of its own. Arguments: payload, length,
# expiry (s).
# Returns: what is wrong with it, or ''.
KEEP_RESPONSE = Script("""
local entry, wrong = keep(KEYS[1], ARGV[1], ARGV[2], ARGV[3])
if entry then
  redis.pcall('PUBLISH', KEYS[1], entry)
end
return wrong
""")

# Keys: stream, epoch, settled, dead. Arguments: group, consumer, node, and for each
# claim: id, epoch, token, failure, request, attempts. Returns: how each stood; what is wrong
# with the dead letters, or ''.
DROP = Script("""
local stream, epochs, settled, dead = unpack(KEYS)
local group, me, node = unpack(ARGV, 1, 3)  -- Lua's stack could not take all of them
local stood, unburied = {}, ''
for i = 4, #ARGV, 6 do
  local id, epoch, token, failure, request, attempts = unpack(ARGV, i, i + 5)
  local how = standing(stream, group, me, id, epochs, epoch, settled, token)
  if how == 'mine' or how == 'free' then
    -- What is no request is none for any node: one letter for all of them.
    if failure ~= '' and redis.call('ZADD', settled, 'NX', now, 'dead:' .. id) == 1 then
      local wrong = bury(dead, request, failure, attempts, group, node, stream, id)
      if wrong ~= '' then unburied = wrong end
    end
    if how == 'mine' then redis.call('XACK', stream, group, id) end
    note(settled, token)
  end
  table.insert(stood, how)
end
return {stood, unburied}
""")

# Keys: stream, epoch, settled, delayed. Arguments: group, consumer, epoch, id, token, delay
# (ms), whether it is released, which is no attempt (1 or 0), the request if it may be put
# into a stream that has lost it, or ''.
# Returns: how it stood; 'free' only if nobody will be given it again.
PARK = Script("""
local stream, epochs, settled, delayed = unpack(KEYS)
local group, me, epoch, id, token, delay, released, request = unpack(ARGV)
if redis.call('ZSCORE', settled, 'free:' .. token) then return 'free' end  -- the reply was lost
local how, attempts, owner = standing(stream, group, me, id, epochs, epoch, settled, token)
if how == 'mine' and not there(stream, id) then
  if request ~= '' then
    redis.call('XACK', stream, group, id)
  else  -- it stays ours until then
    redis.call('ZADD', settled, now + delay, 'held:' .. group .. ':' .. id)
  end
  how = 'free'
end
if how == 'mine' then
  local mark = released == '1' and string.sub(owner, #me + 1) or ''
  redis.call('ZADD', delayed, now + delay, id .. mark)
  redis.call('EXPIRE', delayed, KEEP)
  redis.call('XCLAIM', stream, group, PARKED, 0, id,
    'RETRYCOUNT', math.max(attempts - released, 0), 'JUSTID')
  note(settled, token)
elseif how == 'free' then
  if there(stream, id) then
    how = 'done'  -- it will be read once more
  elseif request ~= '' then
    redis.call('XADD', stream, '*', 'request', request)
    how = 'done'
  end
  note(settled, how == 'free' and 'free:' .. token or token)
end
return how
""")

# What was read but never heard of, because the connection broke, goes back.
# Keys: stream, delayed, dead, settled. Arguments: group, consumer, whether it leaves (1 or
# 0), node, lease (ms), ids that were heard of. Returns: how many went back, and the ids of
# those that were deleted from the stream, and are among the dead letters now.
SWEEP = Script("""
local stream, delayed, dead, settled = unpack(KEYS)
local group, me, leaves, node, lease = unpack(ARGV, 1, 5)
if not group_of(stream, group) then return {0, {}} end
local heard, count, deleted = {}, 0, {}
for i = 6, #ARGV do heard[ARGV[i]] = true end
for _, mark in ipairs({'', '!'}) do
  local kept = 0
  local held = redis.call('XPENDING', stream, group, '-', '+', 10000, me .. mark)
  for _, entry in ipairs(held) do
    if heard[entry[1]] or lasts(settled, group, entry[1], tonumber(lease)) then
      kept = kept + 1
    elseif not there(stream, entry[1]) then
      bury_deleted(dead, entry[4], group, node, stream, entry[1])
      table.insert(deleted, entry[1])
    else
      redis.call('ZADD', delayed, now, entry[1] .. mark)
      redis.call('EXPIRE', delayed, KEEP)
      redis.call('XCLAIM', stream, group, PARKED, 0, entry[1],
        'RETRYCOUNT', math.max(entry[4] - 1, 0), 'JUSTID')
      count = count + 1
    end
  end
  if leaves == '1' and kept == 0 then
    redis.call('XGROUP', 'DELCONSUMER', stream, group, me .. mark)
  end
end
return {count, deleted}
""")

# Keys: stream, groups, epoch. Arguments: beginning of the keys with what is delayed, ms
# that lie between two runs. Returns: names of the groups that have expired.
TRIM = Script("""
local stream, groups, epochs = unpack(KEYS)
local delayed, interval = unpack(ARGV)
local last = tonumber(redis.call('HGET', epochs, 'trimmed') or 0)
if redis.call('EXISTS', stream) == 0 or (last <= now and now - last < tonumber(interval)) then
  return {}
end
local expired, longest, rows = {}, 0, {}
for name, value in pairs(fields(redis.call('HGETALL', groups))) do
  local seen, retention, expiry = string.match(value, '^(%d+)|(%d*)|(%d+)|')
  -- A pool goes only if nobody holds anything in it.
  local group = group_of(stream, name)
  local idle = retention ~= '' or not group or group.pending == 0
  if idle and now - seen > tonumber(expiry) then
    redis.call('XGROUP', 'DESTROY', stream, name)
    redis.call('HDEL', groups, name)
    redis.call('DEL', delayed .. name)
    table.insert(expired, name)
  else
    if retention ~= '' then longest = math.max(longest, tonumber(retention)) end
    rows[name] = {seen, retention, expiry}
  end
end
local floor = nil
for _, flat in ipairs(redis.call('XINFO', 'GROUPS', stream)) do
  local group = fields(flat)
  local handled = group['last-delivered-id']
  local oldest = redis.call('XPENDING', stream, group.name)[2]
  if oldest and less(before(oldest), handled) then handled = before(oldest) end
  if not floor or less(handled, floor) then floor = handled end
  local row = rows[group.name]
  if row then
    redis.call('HSET', groups, group.name, table.concat({row[1], row[2], row[3], handled}, '|'))
  end
end
if floor then
  local first = after(floor)
  local young = string.format('%.0f-0', math.max(now - longest, 0))
  if longest > 0 and less(young, first) then first = young end
  redis.call('XTRIM', stream, 'MINID', first)
  local added = fields(redis.call('XINFO', 'STREAM', stream))['entries-added']
  redis.call('HSET', epochs, 'trimmed', now, 'added', added)
end
return expired
""")
