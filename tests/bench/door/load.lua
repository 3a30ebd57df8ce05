-- Arguments: healthz or sign; kept or new (connections).
-- Prints one line: "result", requests, microseconds, p50, p99 (both in microseconds), requests without a 200.

function init(arguments)
  local work, mode = arguments[1], arguments[2]
  wrk.path = "/" .. work
  if work == "sign" then
    wrk.method = "POST"
    wrk.headers["Content-Type"] = "application/json"
    wrk.body = [[{"room_name":"3xJ0gHxqkNbT5hV0cZc1mGm2u0kq8f1oYw0mJt0b5iA","participant_identity":"Q9yKx1oYw0mJt0b5iA3xJ0gHxqkNbT5hV0cZc1mGm2u",]]
      .. [["participant_name":"somebody","participant_metadata":"{\"device\":\"ABCDEFGHIJ\",\"user\":\"@somebody:example.org\",\"app\":\"bench\"}","can_publish":true}]]
  end
  if mode == "new" then wrk.headers["Connection"] = "close" end
  text = wrk.format()
  -- tiny_http closes a connection without saying so, which wrk takes for an error, but not from a server of HTTP/1.0
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
