package main

import (
	"encoding/hex"
	"flag"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	"strconv"
	"strings"
	"time"
)

// How often a replica tells its load: what the picker asks of few replicas.
const sampleEvery = 250 * time.Millisecond

type answer struct {
	message, last, sample []byte // framed as gRPC does
}

func serve(arguments []string) error {
	flags := flag.NewFlagSet("serve", flag.ExitOnError)
	message := flags.String("message", "", "hex of each GenerateResponse but the last")
	last := flags.String("last", "", "hex of the last GenerateResponse")
	samples := flags.String("samples", "", "comma list, hex of each replica's WatchLoadResponse; one listener each")
	flags.Parse(arguments)
	var listeners []string
	for _, sample := range strings.Split(*samples, ",") {
		listener, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			return err
		}
		a := &answer{message: framed(*message), last: framed(*last), sample: framed(sample)}
		// No limit on streams of a connection that the gateway would reach: it opens one connection a worker.
		server := &http.Server{Handler: a, Protocols: h2c(), HTTP2: &http.HTTP2Config{MaxConcurrentStreams: 100_000}}
		go server.Serve(listener)
		listeners = append(listeners, listener.Addr().String())
	}
	fmt.Println(strings.Join(listeners, ","))
	// The bench holds our stdin: when it ends, however it ends, so do we.
	io.Copy(io.Discard, os.Stdin)
	return nil
}

func framed(text string) []byte {
	message, err := hex.DecodeString(text)
	if err != nil {
		fmt.Fprintln(os.Stderr, "streams serve:", err)
		os.Exit(2)
	}
	size := len(message)
	return append([]byte{0, byte(size >> 24), byte(size >> 16), byte(size >> 8), byte(size)}, message...)
}

func (a *answer) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	io.Copy(io.Discard, r.Body)
	w.Header().Set("Content-Type", "application/grpc")
	flusher := http.NewResponseController(w)
	if strings.HasSuffix(r.URL.Path, "/WatchLoad") {
		ticker := time.NewTicker(sampleEvery)
		defer ticker.Stop()
		for {
			w.Write(a.sample)
			if flusher.Flush() != nil {
				return
			}
			select {
			case <-ticker.C:
			case <-r.Context().Done():
				return
			}
		}
	}
	messages, _ := strconv.Atoi(r.Header.Get("Bench-Messages"))
	microseconds, _ := strconv.Atoi(r.Header.Get("Bench-Interval-Us"))
	interval := time.Duration(microseconds) * time.Microsecond
	// Answers have nothing to do with each other: without this, clients that begin in a row give messages that arrive together, and
	// how many do depends on how evenly the way to the replica lets requests through, not on what a message costs.
	begin := time.Now().Add(-time.Duration(rand.Int64N(int64(interval) + 1)))
	for number := range messages {
		if wait := time.Until(begin.Add(time.Duration(number) * interval)); wait > 0 {
			time.Sleep(wait)
		}
		frame := a.message
		if number == messages-1 {
			frame = a.last
		}
		if _, err := w.Write(frame); err != nil {
			return
		}
		// Every message leaves by itself, as tokens do.
		if flusher.Flush() != nil {
			return
		}
	}
	w.Header().Set(http.TrailerPrefix+"Grpc-Status", "0")
	w.Header().Set(http.TrailerPrefix+"X-Usage-Prompt-Tokens", "1000")
	w.Header().Set(http.TrailerPrefix+"X-Usage-Completion-Tokens", strconv.Itoa(messages))
	w.Header().Set(http.TrailerPrefix+"X-Usage-Cached-Tokens", "0")
}
