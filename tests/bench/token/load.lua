-- Arguments: kept or new (connections); the Authorization field, or nothing.
-- Prints one line: "result", requests, microseconds, p50, p99 (both in microseconds), requests without a 200.

function init(arguments)
  local mode, authorization = arguments[1], arguments[2]
  wrk.method, wrk.path = "POST", "/token"
  wrk.headers["Content-Type"] = "application/json"
  if authorization then wrk.headers["Authorization"] = authorization end
  wrk.body = [[{"room_name":"appointment-test-123","participant_name":"user-456","metadata":"{\"role\": \"participant\"}"}]]
  text = wrk.format()
  -- HTTP/1.0 ends a connection with its reply; wrk takes the end of an HTTP/1.1 one for an error
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
