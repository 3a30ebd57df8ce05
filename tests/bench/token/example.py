"""The stack to compare with: a token endpoint as such examples have it, on FastAPI, uvicorn and LiveKit's Python SDK.

The same fields, checks, reply and line in the log as POST /token of the service in the example's form; nobody is authenticated."""

import datetime
import logging
import os

import uvicorn
from fastapi import FastAPI, HTTPException
from fastapi.middleware.cors import CORSMiddleware
from livekit import api
from pydantic import BaseModel

LIFETIME = datetime.timedelta(hours=24)

# the line for each token is the only one: uvicorn's own would be a second
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


class Ask(BaseModel):
    room_name: str
    participant_name: str
    metadata: str | None = None


class Answer(BaseModel):
    token: str
    url: str
    expires_at: str


@app.post("/token")
async def token(ask: Ask) -> Answer:
    for field in "room_name", "participant_name":
        if len(getattr(ask, field)) < 3:
            raise HTTPException(400, f"{field}: at least 3 characters")
    grants = api.VideoGrants(
        room_join=True, room=ask.room_name, can_publish=True, can_subscribe=True, can_publish_data=True
    )
    signed = api.AccessToken(os.environ["LIVEKIT_API_KEY"], os.environ["LIVEKIT_API_SECRET"])
    signed = signed.with_identity(ask.participant_name).with_name(ask.participant_name).with_grants(grants)
    signed = signed.with_ttl(LIFETIME).with_metadata(ask.metadata or "")
    expires_at = datetime.datetime.now(datetime.timezone.utc) + LIFETIME
    log.info("Token generated for user %s in room %s", ask.participant_name, ask.room_name)
    return Answer(token=signed.to_jwt(), url=os.environ["LIVEKIT_URL"], expires_at=expires_at.isoformat())


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
