// Fetches / with Deno's own fetch.
// Usage: deno.mjs HOST:PORT NAME CA_FILE h2|http/1.1
// Prints {"body", "local_port"}.
const [address, name, caFile, protocol] = Deno.args;
const [hostname, port] = address.split(":");

// fetch takes the address from the name alone, so a CONNECT proxy of our own leads the name there. It
// also knows the port that the connection has.
let localPort = 0;
const listener = Deno.listen({ hostname: "127.0.0.1", port: 0 });

async function tunnel() {
	const client = await listener.accept();
	const request = new Uint8Array(4096);
	await client.read(request); // one small write of the client's, so it comes whole
	const server = await Deno.connect({ hostname, port: Number(port) });
	localPort = server.localAddr.port;
	await client.write(new TextEncoder().encode("HTTP/1.1 200 OK\r\n\r\n"));
	await Promise.allSettled([client.readable.pipeTo(server.writable), server.readable.pipeTo(client.writable)]);
}

const tunnelled = tunnel();
const client = Deno.createHttpClient({
	caCerts: [Deno.readTextFileSync(caFile)],
	http1: protocol === "http/1.1",
	http2: protocol === "h2",
	poolMaxIdlePerHost: 0,
	proxy: { url: `http://127.0.0.1:${listener.addr.port}` },
});
const response = await fetch(`https://${name}/`, { client });
console.log(JSON.stringify({ body: await response.text(), local_port: localPort }));
client.close();
listener.close();
await tunnelled;
