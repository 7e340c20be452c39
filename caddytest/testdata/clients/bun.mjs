// Fetches / with Bun's own fetch.
// Usage: bun.mjs HOST:PORT NAME CA_FILE h2|http/1.1
// Prints {"body"}: fetch tells neither its port nor the group.
const [address, name, caFile, protocol] = process.argv.slice(2);
const response = await fetch(`https://${address}/`, {
	headers: { host: name },
	tls: { ca: Bun.file(caFile), serverName: name },
	protocol: protocol === "h2" ? "http2" : "http1.1",
});
console.log(JSON.stringify({ body: await response.text() }));
