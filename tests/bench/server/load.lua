-- Arguments: healthz or sign; reused or new (connections).
dofile(debug.getinfo(1, "S").source:match("^@(.*/)") .. "../measure.lua")

function init(arguments)
  local work, mode = arguments[1], arguments[2]
  wrk.path = "/" .. work
  if work == "sign" then
    wrk.method = "POST"
    wrk.headers["Content-Type"] = "application/json"
    wrk.body = [[{"room_name":"3xJ0gHxqkNbT5hV0cZc1mGm2u0kq8f1oYw0mJt0b5iA","participant_identity":"Q9yKx1oYw0mJt0b5iA3xJ0gHxqkNbT5hV0cZc1mGm2u",]]
      .. [["participant_name":"a user","participant_metadata":"{\"device\":\"ABCDEFGHIJ\",\"user\":\"@user:example.org\",\"app\":\"bench\"}","can_publish":true}]]
  end
  if mode == "new" then wrk.headers["Connection"] = "close" end
  repeat_this(mode)
end
