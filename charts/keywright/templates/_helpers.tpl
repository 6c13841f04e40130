{{/* Labels of every object, for the component given as the second item of the list. */}}
{{- define "keywright.labels" -}}
{{- $root := index . 0 -}}
{{- with $root.Values.commonLabels }}
{{- toYaml . }}
{{ end -}}
app.kubernetes.io/name: keywright
app.kubernetes.io/instance: {{ $root.Release.Name }}
app.kubernetes.io/version: {{ $root.Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ $root.Release.Service }}
helm.sh/chart: {{ printf "%s-%s" $root.Chart.Name $root.Chart.Version }}
{{- with index . 1 }}
app.kubernetes.io/component: {{ . }}
{{- end }}
{{- end }}

{{/* What selects a component's Pods: labels that never change. */}}
{{- define "keywright.selectorLabels" -}}
{{- $root := index . 0 -}}
app.kubernetes.io/name: keywright
app.kubernetes.io/instance: {{ $root.Release.Name }}
app.kubernetes.io/component: {{ index . 1 }}
{{- end }}

{{/* The name of a cluster-wide object. It holds the namespace, as one cluster can have several installations. */}}
{{- define "keywright.clusterName" -}}
{{- $root := index . 0 -}}
{{ printf "%s:%s:%s" $root.Release.Name $root.Release.Namespace (index . 1) }}
{{- end }}

{{- define "keywright.image" -}}
{{- with .Values.image -}}
{{- with .registry }}{{ . }}/{{ end -}}
{{- .repository -}}
{{- if .digest }}@{{ .digest }}{{ else }}:{{ .tag | default $.Chart.AppVersion }}{{ end -}}
{{- end -}}
{{- end }}

{{/*
A component's Pod template: labels and annotations. No version among them, so that nothing restarts but for a change that its
program would notice.
*/}}
{{- define "keywright.podMetadata" -}}
{{- $root := index . 0 -}}
{{- $values := index $root.Values (index . 1) -}}
labels:
  {{- include "keywright.selectorLabels" . | nindent 2 }}
  {{- with merge (dict) $values.podLabels $root.Values.commonLabels }}
  {{- toYaml . | nindent 2 }}
  {{- end }}
annotations:
  kubectl.kubernetes.io/default-container: keywright
  {{- with $values.podAnnotations }}
  {{- toYaml . | nindent 2 }}
  {{- end }}
{{- end }}

{{/* Where a component's Pods run, and with which priority. */}}
{{- define "keywright.scheduling" -}}
{{- $root := index . 0 -}}
{{- $values := index $root.Values (index . 1) -}}
priorityClassName: {{ $root.Values.priorityClassName | default $root.Release.Name }}
{{- include "keywright.placement" $values }}
{{- end }}

{{/* Where Pods run, from the values of their component. */}}
{{- define "keywright.placement" -}}
{{- with .nodeSelector }}
nodeSelector:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .tolerations }}
tolerations:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .affinity }}
affinity:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end }}

{{/* The replicas of a Deployment, over nodes and zones. */}}
{{- define "keywright.topologySpread" -}}
{{- $values := index (index . 0).Values (index . 1) -}}
topologySpreadConstraints:
  {{- with $values.topologySpreadConstraints }}
  {{- toYaml . | nindent 2 }}
  {{- else }}
  {{- range list "kubernetes.io/hostname" "topology.kubernetes.io/zone" }}
  - topologyKey: {{ . }}
    maxSkew: 1
    whenUnsatisfiable: ScheduleAnyway
    labelSelector:
      matchLabels:
        {{- include "keywright.selectorLabels" $ | nindent 8 }}
    matchLabelKeys: [pod-template-hash]
  {{- end }}
  {{- end }}
{{- end }}

{{/* What every Pod has: its identity, and the restricted profile of the Pod Security Standards. */}}
{{- define "keywright.podIdentity" -}}
{{- $root := index . 0 -}}
serviceAccountName: keywright-{{ index . 1 }}
enableServiceLinks: false
{{- with $root.Values.imagePullSecrets }}
imagePullSecrets:
  {{- toYaml . | nindent 2 }}
{{- end }}
# No uid: the image names its own, by number, so that the kubelet sees that it is not root; some clusters assign one.
securityContext:
  {{- mergeOverwrite (dict "runAsNonRoot" true "seccompProfile" (dict "type" "RuntimeDefault")) (deepCopy $root.Values.podSecurityContext) | toYaml | nindent 2 }}
{{- end }}

{{/* What every container has. */}}
{{- define "keywright.container" -}}
name: keywright
image: {{ include "keywright.image" . | quote }}
imagePullPolicy: {{ .Values.image.pullPolicy }}
# `kubectl describe` shows why it ended.
terminationMessagePolicy: FallbackToLogsOnError
securityContext:
  allowPrivilegeEscalation: false
  readOnlyRootFilesystem: true
  capabilities:
    drop: [ALL]
{{- end }}

{{/* The arguments of every server. */}}
{{- define "keywright.serverArguments" -}}
{{- $root := index . 0 -}}
- --namespace={{ $root.Release.Namespace }}
- --log-format={{ $root.Values.log.format }}
- --log-filter={{ $root.Values.log.filter }}
{{- with (index $root.Values (index . 1)).extraArgs }}
{{ toYaml . }}
{{- end }}
{{- end }}

{{/* A server's probes. It answers /healthz from its first moment on, so there is no start to wait for. */}}
{{- define "keywright.probes" -}}
livenessProbe:
  httpGet: {path: /healthz, port: admin}
  periodSeconds: 10
  timeoutSeconds: 5
# Often, as a start takes less than a second.
readinessProbe:
  httpGet: {path: /readyz, port: admin}
  periodSeconds: 2
  timeoutSeconds: 2
  failureThreshold: 2
{{- end }}

{{/* A server's environment. */}}
{{- define "keywright.environment" -}}
env:
  - name: POD_NAME
    valueFrom:
      fieldRef:
        fieldPath: metadata.name
{{- end }}

{{/* A server's PodDisruptionBudget: one at a time. A Pod that is not Ready lets nobody in, and must not hold up a drain. */}}
{{- define "keywright.podDisruptionBudget" -}}
apiVersion: policy/v1
kind: PodDisruptionBudget
metadata:
  name: keywright-{{ index . 1 }}
  namespace: {{ (index . 0).Release.Namespace }}
  labels:
    {{- include "keywright.labels" . | nindent 4 }}
spec:
  maxUnavailable: 1
  unhealthyPodEvictionPolicy: AlwaysAllow
  selector:
    matchLabels:
      {{- include "keywright.selectorLabels" . | nindent 6 }}
{{- end }}

{{/*
The duration at the path given as the second item of the list. Not the schema's to refuse: it could only show a pattern, to
people who need an example.
*/}}
{{- define "keywright.duration" -}}
{{- $value := index . 0 -}}
{{- if not (regexMatch "^([0-9]+(d|h|m|s))+$" (toString $value)) -}}
{{- fail (printf "%s must be a duration such as 30s, 5m, 1h30m or 90d, not %q" (index . 1) (toString $value)) -}}
{{- end -}}
{{- $value -}}
{{- end }}
