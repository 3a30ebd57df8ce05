-- For wrk's scripts beside this one: they say what is asked, this asks it again and again.
-- Prints one line: "result", requests, microseconds, p50, p99 (both in microseconds), requests without a 200.

-- takes wrk's request as it is now; mode: kept or new (connections)
function repeat_this(mode)
  text = wrk.format()
  -- HTTP/1.0 ends a connection with its reply, as nginx asks by default; wrk takes the end of an HTTP/1.1 one for an error
  if mode == "new" then text = text:gsub("HTTP/1.1", "HTTP/1.0", 1) end
end

function request()
  return text
end

function done(summary, latency)
  local errors = summary.errors
  local bad = errors.status + errors.connect + errors.read + errors.write + errors.timeout
  print(string.format("result %d %d %d %d %d", summary.requests, summary.duration, latency:percentile(50), latency:percentile(99), bad))
end
