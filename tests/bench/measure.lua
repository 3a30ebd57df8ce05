-- Common part of the wrk scripts: repeats the request that they define, and prints one line:
-- "result", requests, microseconds, p50, p99 (both in microseconds), responses other than 200.

-- uses wrk's current request; mode is "kept" or "new" (connections)
function repeat_this(mode)
  text = wrk.format()
  -- HTTP/1.0, nginx' default for back ends, closes the connection after the response; closed HTTP/1.1 connections are errors for wrk
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
