-- Script for wrk. Arguments: endpoint (token or healthz), connections (kept or new), server name of the user.
dofile(debug.getinfo(1, "S").source:match("^@(.*/)") .. "measure.lua")

function init(arguments)
  local endpoint, mode, server = arguments[1], arguments[2], arguments[3]
  wrk.headers["Content-Type"] = "application/json"
  if endpoint == "healthz" then
    wrk.path = "/healthz"
  else
    wrk.method, wrk.path = "POST", "/get_token"
    wrk.body = string.format([[{"room_id":"!room:example.org","slot_id":"m.call#ROOM",
      "openid_token":{"access_token":"bench","token_type":"Bearer","matrix_server_name":"%s","expires_in":3600},
      "member":{"id":"member","claimed_user_id":"@bench:%s","claimed_device_id":"DEVICE"}}]], server, server)
  end
  repeat_this(mode)
end
