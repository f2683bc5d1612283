package main

import (
	"bytes"
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"net/http"
	"os"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"
)

const (
	generate = "/moefleet.inference.v1.InferenceService/Generate"
	// HTTP/2 connections of the clients together. The kernel deals them out among Envoy's workers by chance, and a busier
	// worker needs less time for a message: few connections could all meet the same worker.
	connections = 16
)

type counts struct {
	messages, ended, tokens, failed atomic.Int64
	failure                         atomic.Value // string, the newest
	lock                            sync.Mutex
	firsts                          []first
}

type first struct {
	at   time.Time
	took time.Duration
}

type report struct {
	Event    string    `json:"event"`
	ElapsedS float64   `json:"elapsed_s"`
	CPUS     float64   `json:"cpu_s"` // of the clients, since they started
	Messages int64     `json:"messages"`
	Ended    int64     `json:"ended"`
	Tokens   int64     `json:"tokens"`
	Failed   int64     `json:"failed"`
	Failure  string    `json:"failure"`
	FirstsMS []float64 `json:"firsts_ms"`
}

func load(arguments []string) error {
	flags := flag.NewFlagSet("load", flag.ExitOnError)
	targets := flags.String("targets", "", "comma list of host:port")
	bodies := flags.String("bodies", "", "file of requests: 4 bytes of length, then a GenerateRequest")
	streams := flags.Int("streams", 1, "how many run at once")
	messages := flags.Int("messages", 50, "of each answer (bench replicas)")
	interval := flags.Duration("interval", 0, "between messages of an answer (bench replicas)")
	ramp := flags.Duration("ramp", 0, "over which the streams begin; the window opens at its end")
	window := flags.Duration("window", 0, "length of the window; 0: until --requests have ended")
	requests := flags.Int64("requests", 0, "end after so many; 0: no end")
	flags.Parse(arguments)
	prompts, err := readBodies(*bodies)
	if err != nil {
		return err
	}
	where := strings.Split(*targets, ",")
	clients := make([]*http.Client, connections)
	for i := range clients {
		clients[i] = &http.Client{Transport: &http.Transport{Protocols: h2c(), DisableCompression: true}}
	}
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	c := new(counts)
	var begun atomic.Int64
	var running sync.WaitGroup
	begin := time.Now()
	for i := range *streams {
		running.Add(1)
		go func() {
			defer running.Done()
			time.Sleep(*ramp * time.Duration(i) / time.Duration(*streams))
			for ctx.Err() == nil {
				number := begun.Add(1)
				if *requests > 0 && number > *requests {
					return
				}
				c.one(ctx, clients[i%connections], where[i%len(where)], prompts[int(number)%len(prompts)], *messages, *interval)
			}
		}()
	}
	time.Sleep(*ramp)
	before, opened := report{Event: "open"}, begin
	if *window > 0 {
		opened = time.Now()
		before = c.now("open", opened, opened)
	}
	say(before)
	if *window > 0 {
		time.Sleep(*window)
	} else {
		running.Wait()
	}
	after := c.now("closed", opened, time.Now())
	after.Messages -= before.Messages
	after.Ended -= before.Ended
	after.Tokens -= before.Tokens
	after.CPUS -= before.CPUS
	say(after)
	return nil
}

func say(r report) {
	line, _ := json.Marshal(r)
	fmt.Println(string(line))
}

func (c *counts) now(event string, opened, closed time.Time) report {
	r := report{Event: event, ElapsedS: closed.Sub(opened).Seconds(), Messages: c.messages.Load(), Ended: c.ended.Load(),
		Tokens: c.tokens.Load(), Failed: c.failed.Load(), FirstsMS: []float64{}}
	var used syscall.Rusage
	if syscall.Getrusage(syscall.RUSAGE_SELF, &used) == nil {
		r.CPUS = time.Duration(used.Utime.Nano() + used.Stime.Nano()).Seconds()
	}
	r.Failure, _ = c.failure.Load().(string)
	c.lock.Lock()
	defer c.lock.Unlock()
	for _, f := range c.firsts {
		if f.at.After(opened) {
			r.FirstsMS = append(r.FirstsMS, float64(f.took.Microseconds())/1000)
		}
	}
	return r
}

func (c *counts) one(ctx context.Context, client *http.Client, target string, body []byte, messages int, interval time.Duration) {
	request, err := http.NewRequestWithContext(ctx, http.MethodPost, "http://"+target+generate, bytes.NewReader(body))
	if err != nil {
		c.fail(err)
		return
	}
	request.Header.Set("Content-Type", "application/grpc")
	request.Header.Set("Te", "trailers")
	request.Header.Set("Bench-Messages", strconv.Itoa(messages))
	request.Header.Set("Bench-Interval-Us", strconv.FormatInt(interval.Microseconds(), 10))
	began := time.Now()
	response, err := client.Do(request)
	if err != nil {
		if ctx.Err() == nil {
			c.fail(err)
		}
		return
	}
	defer response.Body.Close()
	if err := c.read(response.Body, began); err != nil {
		if ctx.Err() == nil {
			c.fail(err)
		}
		return
	}
	status := response.Trailer.Get("Grpc-Status") + response.Header.Get("Grpc-Status")
	if status != "0" {
		c.fail(fmt.Errorf("grpc-status %q %s%s", status, response.Trailer.Get("Grpc-Message"), response.Header.Get("Grpc-Message")))
		return
	}
	tokens, _ := strconv.ParseInt(response.Trailer.Get("X-Usage-Completion-Tokens"), 10, 64)
	c.tokens.Add(tokens)
	c.ended.Add(1)
}

// Counts the messages of one answer as they come.
func (c *counts) read(body io.Reader, began time.Time) error {
	var prefix [5]byte
	for number := 0; ; number++ {
		if _, err := io.ReadFull(body, prefix[:]); err != nil {
			if errors.Is(err, io.EOF) {
				return nil
			}
			return err
		}
		if _, err := io.CopyN(io.Discard, body, int64(binary.BigEndian.Uint32(prefix[1:]))); err != nil {
			return err
		}
		c.messages.Add(1)
		if number == 0 {
			now := time.Now()
			c.lock.Lock()
			c.firsts = append(c.firsts, first{now, now.Sub(began)})
			c.lock.Unlock()
		}
	}
}

// A failure costs its stream a moment, so that a gateway that refuses everything is not hammered.
func (c *counts) fail(err error) {
	c.failed.Add(1)
	c.failure.Store(err.Error())
	time.Sleep(100 * time.Millisecond)
}

func readBodies(path string) ([][]byte, error) {
	data, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	var out [][]byte
	for len(data) >= 4 {
		size := int(binary.BigEndian.Uint32(data))
		if len(data) < 4+size {
			break
		}
		body := append([]byte{0}, data[:4+size]...) // the length is the rest of gRPC's prefix
		out = append(out, body)
		data = data[4+size:]
	}
	if len(out) == 0 || len(data) != 0 {
		return nil, fmt.Errorf("%s: wanted whole requests, found %d and %d bytes more", path, len(out), len(data))
	}
	return out, nil
}
