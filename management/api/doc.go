// Package api is the management plane's HTTP face: a JSON API for customers and operators, and the one for edges.
//
//	a := api.New(plane, api.Options{RateLimit: 20})
//	http.ListenAndServeTLS(addr, cert, key, a.Public())
//
// Every route is an entry of one table, made by endpoint or stream from a description and a function. Everything else is done
// here, in one order: find the route, find out who calls, limit, ask for the scope, read and check the request, remember its
// Idempotency-Key, call the function, write the answer or the problem. The OpenAPI document is made from the same table.
//
// What is refused is a problem document (RFC 9457) with a code of package management; the table of problems has the HTTP status
// of each. No answer quotes what came in: a fault has the place of a value, never the value. Names of members and parameters are
// repeated where they are short and plain, so that the fault can be found.
//
// A request has one credential: an API key or a session on the public face, an edge token on the other. With both a key and a
// session it is malformed. Routes for anybody look at no credential, and remember no Idempotency-Key, since there is nobody to
// whom it could belong.
package api
