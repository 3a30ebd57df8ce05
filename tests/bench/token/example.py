"""The server to compare with: a token endpoint on FastAPI, uvicorn and LiveKit's Python SDK, as in published examples.

Fields, checks, response and log line are those of POST /token in the form of the example; clients are not authenticated."""

import datetime
import logging
import os

import uvicorn
from fastapi import FastAPI, HTTPException
from fastapi.middleware.cors import CORSMiddleware
from livekit import api
from pydantic import BaseModel

LIFETIME = datetime.timedelta(hours=24)

# one log line for each token, without uvicorn's access log
logging.basicConfig(level=logging.INFO)
log = logging.getLogger("example")
app = FastAPI()
app.add_middleware(
    CORSMiddleware,
    allow_origins=["http://localhost:3000"],
    allow_credentials=True,
    allow_methods=["GET", "POST"],
    allow_headers=["*"],
)


class TokenRequest(BaseModel):
    room_name: str
    participant_name: str
    metadata: str | None = None


class TokenResponse(BaseModel):
    token: str
    url: str
    expires_at: str


@app.post("/token")
async def token(request: TokenRequest) -> TokenResponse:
    for field in "room_name", "participant_name":
        if len(getattr(request, field)) < 3:
            raise HTTPException(400, f"{field}: at least 3 characters")
    grants = api.VideoGrants(
        room_join=True, room=request.room_name, can_publish=True, can_subscribe=True, can_publish_data=True
    )
    signed = api.AccessToken(os.environ["LIVEKIT_API_KEY"], os.environ["LIVEKIT_API_SECRET"])
    signed = signed.with_identity(request.participant_name).with_name(request.participant_name).with_grants(grants)
    signed = signed.with_ttl(LIFETIME).with_metadata(request.metadata or "")
    expires_at = datetime.datetime.now(datetime.timezone.utc) + LIFETIME
    log.info("Token generated for user %s in room %s", request.participant_name, request.room_name)
    return TokenResponse(token=signed.to_jwt(), url=os.environ["LIVEKIT_URL"], expires_at=expires_at.isoformat())


@app.get("/health")
async def health() -> dict[str, str]:
    return {"status": "healthy"}


if __name__ == "__main__":
    uvicorn.run(
        "example:app",
        host="127.0.0.1",
        port=int(os.environ["TOKEN_SERVER_PORT"]),
        access_log=False,
        workers=int(os.environ["WORKERS"]),
    )
