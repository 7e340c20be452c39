// Fetches / with Node.js, or with another runtime that has Node's modules.
// Usage: node.mjs HOST:PORT NAME CA_FILE h2|http/1.1
// Prints {"body", "local_port", "group"}; group is what the client's own TLS library says it negotiated.
import { readFileSync } from "node:fs";
import http2 from "node:http2";
import https from "node:https";

const [address, name, caFile, protocol] = process.argv.slice(2);
const [host, port] = address.split(":");
const ca = readFileSync(caFile);

function fail(error) {
	console.error(error);
	process.exit(1);
}

function report(stream, socket, done) {
	const answer = { body: "", local_port: socket.localPort, group: socket.getEphemeralKeyInfo().name };
	stream.setEncoding("utf8");
	stream.on("data", (chunk) => (answer.body += chunk));
	stream.on("end", () => {
		console.log(JSON.stringify(answer));
		done();
	});
}

if (protocol === "h2") {
	const session = http2.connect(`https://${address}`, { ca, servername: name });
	session.on("error", fail);
	const stream = session.request({ ":path": "/", ":authority": name });
	stream.on("response", () => report(stream, session.socket, () => session.close()));
	stream.end();
} else {
	const options = { host, port, ca, servername: name, headers: { host: name }, agent: false, ALPNProtocols: [protocol] };
	const request = https.request(options, (response) => report(response, response.socket, () => {}));
	request.on("error", fail);
	request.end();
}
