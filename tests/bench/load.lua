-- Arguments: token or healthz; kept or new (connections); the server name of the user.
-- Prints one line: "result", requests, microseconds, p50, p99 (both in microseconds), requests without a 200.

function init(arguments)
  local work, mode, server = arguments[1], arguments[2], arguments[3]
  wrk.headers["Content-Type"] = "application/json"
  if work == "healthz" then
    wrk.path = "/healthz"
  else
    wrk.method, wrk.path = "POST", "/get_token"
    wrk.body = string.format([[{"room_id":"!room:example.org","slot_id":"m.call#ROOM",
      "openid_token":{"access_token":"bench","token_type":"Bearer","matrix_server_name":"%s","expires_in":3600},
      "member":{"id":"member","claimed_user_id":"@bench:%s","claimed_device_id":"DEVICE"}}]], server, server)
  end
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
