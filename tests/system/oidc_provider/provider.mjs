// A certified OpenID Connect provider whose accounts are whatever name is typed:
// node provider.mjs REDIRECT_URI prints its issuer. POST /control/disable/NAME disables an account,
// POST /control/keys makes it sign with a new key.
import { createServer } from "node:http";
import { generateKeyPairSync } from "node:crypto";
import Provider from "oidc-provider";

const [redirectUri] = process.argv.slice(2);
const disabled = new Set();
let keys = 0;
let handle;

function account(_ctx, id) {
  if (disabled.has(id)) return undefined;
  const claims = { sub: id, email: `${id}@acme.example`, email_verified: true };
  return { accountId: id, claims: () => ({ ...claims, name: id.toUpperCase(), groups: ["lab"] }) };
}

function newKey() {
  const { privateKey } = generateKeyPairSync("rsa", { modulusLength: 2048 });
  return { ...privateKey.export({ format: "jwk" }), kid: `key-${++keys}`, use: "sig", alg: "RS256" };
}

function start(issuer) {
  const provider = new Provider(issuer, {
    clients: [
      {
        client_id: "tornadoproxy",
        client_secret: "secret-of-the-proxy-at-the-provider",
        redirect_uris: [redirectUri],
        grant_types: ["authorization_code", "refresh_token"],
        response_types: ["code"],
      },
    ],
    adapter,
    jwks: { keys: [newKey()] },
    cookies: { keys: ["a key for cookies"] },
    claims: { openid: ["sub"], email: ["email", "email_verified"], profile: ["name", "groups"] },
    pkce: { required: () => true, methods: ["S256"] },
    rotateRefreshToken: true,
    findAccount: account,
    features: { devInteractions: { enabled: true } },
  });
  handle = provider.callback();
}

// the memory adapter of the package is one for each provider, and is to outlive a change of keys
const stored = new Map();
class adapter {
  constructor(model) {
    this.model = model;
  }
  key(id) {
    return `${this.model}:${id}`;
  }
  async upsert(id, payload) {
    stored.set(this.key(id), payload);
  }
  async find(id) {
    return stored.get(this.key(id));
  }
  async findByUid(uid) {
    return [...stored.values()].find((each) => each.uid === uid && each.kind === this.model);
  }
  async consume(id) {
    stored.get(this.key(id)).consumed = Math.floor(Date.now() / 1000);
  }
  async destroy(id) {
    stored.delete(this.key(id));
  }
  async revokeByGrantId(grantId) {
    for (const [key, each] of stored) if (each.grantId === grantId) stored.delete(key);
  }
}

const server = createServer((request, response) => {
  const [, control, what, name] = request.url.split("/");
  if (control !== "control") return handle(request, response);
  if (what === "disable") disabled.add(name);
  else start(issuer);
  response.end();
});
let issuer;
server.listen(0, "127.0.0.1", () => {
  issuer = `http://127.0.0.1:${server.address().port}`;
  start(issuer);
  console.log(issuer);
});
