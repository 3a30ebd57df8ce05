-- Arguments: "kept" or "new" connections; the value of Authorization, if any.
dofile(debug.getinfo(1, "S").source:match("^@(.*/)") .. "../measure.lua")

function init(arguments)
  local mode, authorization = arguments[1], arguments[2]
  wrk.method, wrk.path = "POST", "/token"
  wrk.headers["Content-Type"] = "application/json"
  if authorization then wrk.headers["Authorization"] = authorization end
  wrk.body = [[{"room_name":"appointment-test-123","participant_name":"user-456","metadata":"{\"role\": \"participant\"}"}]]
  repeat_this(mode)
end
